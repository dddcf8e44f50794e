"""Texts that the rules of several languages share."""

from __future__ import annotations

from typing import Final

from nanoagent.model.text import Text

NOT_UTF8: Final = Text(
    "A source file is not UTF-8. Save it as UTF-8 (not UTF-16 or CP949), and make the zip again.",
    "소스 파일이 UTF-8이 아닙니다. UTF-8로 저장하고(UTF-16이나 CP949가 아님) zip을 다시 만드세요.",
)
RECURSION: Final = Text(
    "A function calls itself too deeply. Usually its end condition is never reached. Check the condition,"
    " or use a"
    " loop.",
    "함수가 자신을 너무 깊이 호출합니다. 대개 끝나는 조건에 도달하지 않기 때문입니다. 조건을 확인하거나"
    " 반복문을 쓰세요.",
)
ALLOCATION: Final = Text(
    "The program asks for more memory at once than it can get (memoryMb={memory_mb}). Check the size that"
    " it asks"
    " for, process the data in parts, or raise memoryMb.",
    "프로그램이 한 번에 받을 수 있는 것보다 많은 메모리를 요청합니다(memoryMb={memory_mb}). 요청하는 크기를"
    " 확인하고, 데이터를 나누어 처리하거나 memoryMb를 늘리세요.",
)
BYTE_ORDER_MARK: Final = Text(
    "The file begins with a byte order mark (BOM), which JSON does not allow. Save it as UTF-8 without BOM,"
    " or"
    " remove the mark when you read it (Python: encoding='utf-8-sig').",
    "파일이 JSON에서 허용되지 않는 BOM으로 시작합니다. BOM 없는 UTF-8로 저장하거나 읽을 때 제거하세요"
    "(Python: encoding='utf-8-sig').",
)
STDIN_CONSUMED: Final = Text(
    "Standard input has no more data. It has the job's input once, as JSON, and then ends. Nobody can type."
    " Read it"
    " once and keep the text, or read the environment variable PAYLOAD or the file PAYLOAD_FILE.",
    "표준 입력에 남은 데이터가 없습니다. 표준 입력에는 작업의 입력이 JSON으로 한 번만 들어오고 끝납니다."
    " 사람이 입력할 수 없습니다. 한 번 읽어서 보관하거나, 환경 변수 PAYLOAD 또는 PAYLOAD_FILE 파일을"
    " 읽으세요.",
)
ARGUMENTS: Final = Text(
    "A function gets no command-line arguments. Its input is in the environment variable PAYLOAD (JSON), in"
    " the"
    " file PAYLOAD_FILE and in standard input.",
    "함수에는 명령줄 인수가 없습니다. 입력은 환경 변수 PAYLOAD(JSON)와 PAYLOAD_FILE 파일, 표준 입력에"
    " 있습니다.",
)
VARIABLE: Final = Text(
    "The run has no environment variable {name}. Give it in the job's field env. Variables of your shell or"
    " of a"
    " .env file are not passed on.",
    "실행에 환경 변수 {name}이(가) 없습니다. 작업의 env 필드로 넘기세요. 셸이나 .env 파일의 변수는 전달되지"
    " 않습니다.",
)
