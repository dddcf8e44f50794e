"""Python modules that were not found."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain import image, native
from nanoagent.languages.explain.rule import in_error, in_message
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from nanoagent.languages.explain.facts import Facts
    from nanoagent.languages.explain.rule import Rule

PACKAGES: Final = {
    "attr": "attrs",
    "Bio": "biopython",
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "discord": "discord.py",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "PyMuPDF",
    "git": "GitPython",
    "google.protobuf": "protobuf",
    "jose": "python-jose",
    "jwt": "PyJWT",
    "kafka": "kafka-python",
    "konlpy": "konlpy",
    "ldap": "python-ldap",
    "magic": "python-magic",
    "mpl_toolkits": "matplotlib",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyOpenSSL",
    "PIL": "pillow",
    "pkg_resources": "setuptools",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "socks": "PySocks",
    "telegram": "python-telegram-bot",
    "usb": "pyusb",
    "win32api": "pywin32",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}
"""Module → package, for packages whose module has another name."""

_STANDARD_PACKAGES: Final = {
    "distutils": "setuptools",
    "cgi": "legacy-cgi",
    "cgitb": "legacy-cgi",
    "asyncore": "pyasyncore",
    "asynchat": "pyasynchat",
    "audioop": "audioop-lts",
    **{name: f"standard-{name}" for name in ("imghdr", "sndhdr", "uu", "xdrlib", "aifc", "chunk", "sunau")},
    **{name: f"standard-{name}" for name in ("telnetlib", "pipes", "nntplib", "mailcap", "crypt")},
}
"""Removed module of the standard library → package that offers it."""

_IMPORTED_AT: Final = Text("{file}, line {line}: ", "{file} {line}번째 줄: ")
_MISSING: Final = Text(
    "{where}Python did not find the module {name}. If it is a library, run pip install --target . {package}"
    " in the function's folder, so that it is sent with the code. If it is your own file, put it beside"
    " main.py.",
    "{where}Python이 {name} 모듈을 찾지 못했습니다. 라이브러리라면 함수 폴더에서 pip install --target ."
    " {package} 명령을 실행해 코드와 함께 보내세요. 직접 만든 파일이라면 main.py 옆에 두세요.",
)
_NOT_VENDORED: Final = Text(
    "{where}Python did not find the module {name}. requirements.txt lists {package}, but the worker installs"
    " nothing. Run pip install --target . -r requirements.txt in the function's folder, so that the packages"
    " are sent with the code.",
    "{where}Python이 {name} 모듈을 찾지 못했습니다. requirements.txt에 {package}이(가) 있지만 워커는 아무것도"
    " 설치하지 않습니다. 함수 폴더에서 pip install --target . -r requirements.txt 명령을 실행해 패키지를"
    " 코드와 함께 보내세요.",
)
_OWN_FILE: Final = Text(
    "{where}The zip has {folder}, but not {path}. Put this file into the zip.",
    "{where}zip에 {folder}은(는) 있지만 {path} 파일이 없습니다. 이 파일을 zip에 넣으세요.",
)
_CASE: Final = Text(
    "{where}The zip has {found}, but the code imports {name}. Linux distinguishes upper and lower case."
    " Rename the file or change the import.",
    "{where}zip에는 {found}이(가) 있는데 코드는 {name}을(를) import합니다. Linux는 대소문자를 구별합니다."
    " 파일 이름이나 import를 고치세요.",
)
_REMOVED: Final = Text(
    "{where}Python {version} does not have the module {name} any more.{remedy}",
    "{where}Python {version}에는 {name} 모듈이 없습니다(제거됨).{remedy}",
)
_REMOVED_PACKAGE: Final = Text(
    " The package {package} offers it: pip install --target . {package}",
    " {package} 패키지가 제공합니다: pip install --target . {package}",
)
_NOT_OFFERED: Final = Text(
    "{where}The image does not have the module {name} of the standard library. A run has no screen. Remove"
    " the"
    " import.",
    "{where}이미지에는 표준 라이브러리의 {name} 모듈이 없습니다. 실행에는 화면이 없습니다. import를 빼세요.",
)
_SHADOWED: Final = Text(
    "Your file {file} has the name of the module {name}, so Python imports your file instead of the module."
    " Rename {file}.",
    "{file} 파일의 이름이 {name} 모듈과 같아서 Python이 모듈 대신 이 파일을 import합니다."
    " {file}의 이름을 바꾸세요.",
)
_INSTALL: Final = Text(
    "A run cannot install packages: the image has no pip. Install them into the code's folder before you make"
    " the zip: pip install --target . PACKAGE",
    "실행 중에는 패키지를 설치할 수 없습니다. 이미지에 pip이 없습니다. zip을 만들기 전에 코드 폴더에"
    " 설치하세요: pip install --target . PACKAGE",
)
_FRAME: Final = re.compile(r'File "/work/(?P<file>[^"\n]{1,200})", line (?P<line>\d{1,9})')
_PYTHON: Final = f"{image.PYTHON[0]}.{image.PYTHON[1]}"


def _where(facts: Facts) -> Text:
    """Return the position of the import: the last line of the traceback that is in the code."""
    frames = list(_FRAME.finditer(facts.block))
    return _IMPORTED_AT.format(**frames[-1].groupdict()) if frames else Text("", "")


def _missing(found: re.Match[str], facts: Facts) -> Hint | None:
    name, where = found["name"], _where(facts)
    top = name.partition(".")[0]
    hint = (
        native.extension_for_another(name, facts)
        or _standard_module(top, where)
        or _own_file(name, facts, where)
    )
    if hint is not None or top in sys.stdlib_module_names or top in image.PYTHON_MODULES:
        return hint
    package = PACKAGES.get(name) or PACKAGES.get(top, top)
    other_names = {"opencv-python", "opencv-contrib-python"} if top == "cv2" else {top}
    wanted = {_normal(one) for one in {package, *other_names}} & facts.tree.requirements
    if wanted:
        text = _NOT_VENDORED.format(where=where, name=name, package=min(wanted))
        return Hint(Cause.NOT_VENDORED, text)
    return Hint(Cause.MODULE_MISSING, _MISSING.format(where=where, name=name, package=package))


def _normal(package: str) -> str:
    """Return the name of a package as `TreeFacts.requirements` has it."""
    return package.lower().replace("_", "-").replace(".", "-")


def _standard_module(top: str, where: Text) -> Hint | None:
    """Return the hint for a module of the standard library that the image does not have."""
    if top in image.MODULES_REMOVED:
        package = _STANDARD_PACKAGES.get(top)
        remedy = _REMOVED_PACKAGE.format(package=package) if package else ""
        text = _REMOVED.format(where=where, version=_PYTHON, name=top, remedy=remedy)
        return Hint(Cause.MODULE_NOT_OFFERED, text)
    if top in image.MODULES_NOT_OFFERED:
        return Hint(Cause.MODULE_NOT_OFFERED, _NOT_OFFERED.format(where=where, name=top))
    return None


def _own_file(name: str, facts: Facts, where: Text) -> Hint | None:
    """Return the hint for a module of the author: its package is in the zip, or a file with another case."""
    path, files = name.replace(".", "/"), facts.tree.files
    wanted = {f"{path}.py".lower(), f"{path}/__init__.py".lower()}
    alike = [file for file in files if file.lower() in wanted]
    if alike:
        text = _CASE.format(where=where, found=min(alike), name=name)
        return Hint(Cause.FILE_NAME_CASE, text) if _differs(alike, path) else None
    top, dot, _ = name.partition(".")
    if f"{top}.py" in files and _is_known(top):
        return Hint(Cause.MODULE_SHADOWED, _SHADOWED.format(file=f"{top}.py", name=top))
    if not dot or not any(file.startswith(f"{top}/") for file in files) or _is_installed(top, facts):
        return None
    return Hint(Cause.FILE_NOT_IN_ZIP, _OWN_FILE.format(where=where, folder=f"{top}/", path=f"{path}.py"))


def _differs(alike: list[str], path: str) -> bool:
    return not any(file in {f"{path}.py", f"{path}/__init__.py"} for file in alike)


def _is_known(name: str) -> bool:
    return name in sys.stdlib_module_names or name in image.PYTHON_MODULES or name in PACKAGES


def _is_installed(top: str, facts: Facts) -> bool:
    """Whether a folder of the code was made by pip."""
    package = PACKAGES.get(top, top).lower().replace("-", "_")
    return any(
        file.endswith(".dist-info/METADATA") and file.lower().replace("-", "_").startswith(f"{package}_")
        for file in facts.tree.files
    )


def _cannot_import(found: re.Match[str], facts: Facts) -> Hint | None:
    return native.extension_for_another(f"{found['package']}.{found['name']}", facts)


def _partial(found: re.Match[str], facts: Facts) -> Hint | None:
    file = f"{found['name']}.py"
    if file not in facts.tree.files or not _is_known(found["name"]):
        return None
    return Hint(Cause.MODULE_SHADOWED, _SHADOWED.format(file=file, name=found["name"]))


def _renaming(found: re.Match[str], _: Facts) -> Hint:
    file = found["file"]
    name = file.rpartition("/")[2].removesuffix(".py")
    return Hint(Cause.MODULE_SHADOWED, _SHADOWED.format(file=file, name=name))


RULES: Final[tuple[Rule, ...]] = (
    in_error(r"No module named (?:pip|ensurepip)\b", (Cause.RUNTIME_INSTALL, _INSTALL), of_children=True),
    in_message(r"consider renaming '/work/(?P<file>[\w./-]{1,200})' since it has the same name", _renaming),
    in_message(r"partially initialized module '(?P<name>\w{1,100})'", _partial),
    in_message(r"ModuleNotFoundError: No module named '(?P<name>[A-Za-z0-9_.]{1,100})'", _missing),
    in_message(r"ImportError: Missing optional dependency '(?P<name>[A-Za-z0-9_.]{1,100})'", _missing),
    in_error(
        r"cannot import name '(?P<name>\w{1,100})' from (?:partially initialized module )?"
        r"'(?P<package>[\w.]{1,100})'",
        _cannot_import,
    ),
)
