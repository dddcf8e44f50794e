#!/usr/bin/env python3
"""Generate the tables of the documents from the code.

    python scripts/gen_docs.py            rewrite the text between the markers
    python scripts/gen_docs.py --check    change nothing; exit 1 with a diff if a table is out of date

The READMEs have the outcomes between `<!-- outcomes:begin -->` and `<!-- outcomes:end -->`. The pages
docs/configuration*.md have the settings likewise. The names, the defaults and the English descriptions come
from the code. The Korean descriptions and the groups of the settings are in this file.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.config import Settings
from nanoagent.model.result import OUTCOMES, Blame, ErrorType, Settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic.fields import FieldInfo

ROOT: Final = Path(__file__).resolve().parents[1]

SETTINGS_KO: Final = {
    "aws_region": "큐와 버킷의 AWS 리전",
    "sqs_queue_url": "작업을 가져올 큐",
    "sqs_dlq_url": "데드 레터 큐; 기본값: 큐의 redrive policy가 가리키는 큐",
    "sqs_wait_seconds": "롱 폴링 시간(초). SQS_VISIBILITY_SECONDS의 3분의 1을 넘지 않음",
    "sqs_visibility_seconds": "메시지 임대 시간(초); 작업을 처리하는 동안 갱신",
    "s3_code_bucket": "코드 zip의 버킷. 작업이 다른 버킷을 지정할 수 있음",
    "s3_user_data_bucket": "출력 파일을 올릴 버킷",
    "redis_host": "결과를 보낼 Redis 호스트",
    "redis_port": "Redis 포트",
    "redis_db": "Redis 데이터베이스 번호",
    "redis_username": "Redis 사용자. 필요한 경우에만",
    "redis_password": "Redis 비밀번호. 필요한 경우에만",
    "redis_tls": "Redis에 TLS로 연결",
    "redis_tls_ca_file": "Redis 인증서를 서명한 인증 기관의 PEM 파일. 이 머신이 신뢰하는 기관에 더해짐",
    "redis_tls_key_file": "클라이언트 인증서의 개인 키 PEM 파일. 암호화되지 않은 것",
    "redis_tls_cert_file": "클라이언트 인증서와 그 체인의 PEM 파일. 서버가 요구하는 경우에만",
    "result_ttl_seconds": "Redis에 결과를 보관하는 시간(초)",
    "job_index_size": (
        "`nanoagent jobs`가 보여 줄 수 있는 모든 워커의 최근 작업 수; 0이면 이 워커의 작업을 기록하지 않음"
    ),
    "job_index_ttl_seconds": "`nanoagent jobs`가 작업을 보여 줄 수 있는 시간(초)",
    "max_result_bytes": (
        "결과 크기의 한도(바이트); 넘으면 전체 stdout과 stderr를 S3에 올리고 결과에 링크를 남김"
    ),
    "result_spool_mb": (
        "Redis에 연결할 수 없는 동안 디스크에 보관하는 결과의 크기(MiB). 넘으면 작업을 받지 않음"
    ),
    "worker_id": "이 워커의 이름; 기본값: 호스트 이름과 무작위 문자열",
    "worker_memory_mb": "모든 컨테이너가 함께 쓰는 메모리(MiB); 기본값: 머신의 메모리에서 여유분을 뺀 값",
    "worker_cpus": "실행 중인 모든 작업이 함께 쓰는 CPU 수; 기본값: 워커가 쓸 수 있는 CPU 수",
    "max_memory_mb": "작업이 요청할 수 있는 최대 memoryMb; 기본값: 10240과 WORKER_MEMORY_MB 중 작은 값",
    "cpu_burst": "CPU가 남을 때 작업이 자기 몫의 몇 배까지 쓸 수 있는지",
    "cpu_min": "가장 작은 작업이 받는 CPU 수",
    "cpu_max": "가장 큰 작업이 받는 CPU 수; 기본값: WORKER_CPUS",
    "cpu_memory_mb": "CPU 하나에 해당하는 memoryMb(MiB, AWS Lambda와 같은 값)",
    "function_max_share": (
        "함수 하나의 작업과 빌드가 함께 차지할 수 있는 메모리와 CPU의 최대 비율(작업 하나는 항상 가능); "
        "함수가 하나뿐인 워커는 1"
    ),
    "max_attempts": "플랫폼 문제로 실패한 작업의 최대 시도 횟수",
    "retry_base_seconds": "다음 시도까지의 첫 지연(초)",
    "retry_max_seconds": "다음 시도까지의 가장 긴 지연(초)",
    "drain_seconds": "워커가 멈출 때 실행 중인 작업이 끝나기를 기다리는 시간(초)",
    "interruption_notices": (
        "ec2: EC2나 Auto Scaling이 인스턴스를 멈추거나 종료하려 하면 작업을 마무리하고 멈춤"
    ),
    "locale": "작업에 `locale`이 없을 때 결과에 쓰는 언어",
    "log_level": "기록할 최소 로그 수준",
    "log_format": "auto: 터미널이면 텍스트, 아니면 JSON",
    "docker_work_dir_root": "컨테이너의 작업 폴더와 업로드 대기 중인 출력 파일의 폴더",
    "docker_python_image": "Python 런타임 이미지",
    "docker_nodejs_image": "Node.js 런타임 이미지",
    "docker_cpp_image": "C++ 런타임 이미지",
    "docker_go_image": "Go 런타임 이미지",
    "warm_pool_python_size": "미리 준비해 두는 Python 컨테이너 수; 여러 개를 쓴 뒤에는 더 많이; 0이면 없음",
    "warm_pool_nodejs_size": "미리 준비해 두는 Node.js 컨테이너 수; 여러 개를 쓴 뒤에는 더 많이; 0이면 없음",
    "warm_pool_cpp_size": "미리 준비해 두는 C++ 컨테이너 수; 여러 개를 쓴 뒤에는 더 많이; 0이면 없음",
    "warm_pool_go_size": "미리 준비해 두는 Go 컨테이너 수; 여러 개를 쓴 뒤에는 더 많이; 0이면 없음",
    "container_idle_seconds": "함수에 묶인 컨테이너를 이 시간(초) 동안 쓰지 않으면 폐기",
    "container_max_runs": "이 횟수만큼 실행한 컨테이너는 폐기; 1이면 재사용하지 않음",
    "container_sharing": (
        "컨테이너 하나를 함께 쓸 수 있는 실행: 함수 하나의 실행, 한 소유자의 실행(tenant, L2 필요), 이 "
        "워커의 모든 실행(worker, L2 필요), 또는 없음(never)"
    ),
    "tenant_pattern": (
        "CONTAINER_SHARING=tenant이고 작업에 `tenantId`가 없을 때: `s3Key` 또는 `functionId`의 앞부분에 "
        "맞추는 정규 표현식. 그룹이 소유자입니다. 예: `users/([^/]+)/`"
    ),
    "min_isolation": (
        "요구하는 격리 수준; L2: 실행마다 샌드박스를 쓸 수 있는 호스트에서만 시작; "
        "L1과 L0: 어느 수준에서나 시작"
    ),
    "container_apparmor_profile": "AppArmor가 있는 호스트에서 컨테이너에 쓸 AppArmor 프로파일",
    "docker_runtime": (
        "컨테이너를 만드는 런타임으로, `docker info`에 나오는 이름(runsc, kata-runtime 등; "
        "docs/outer-walls.md); 기본값: Docker의 기본 런타임"
    ),
    "python_preload": (
        "Python이 미리 불러 두는 모듈: auto(함수 코드가 import하는 큰 모듈), none, "
        "또는 모든 함수에 쓸 이름 목록(쉼표로 구분)"
    ),
    "function_reuse": (
        "작업이 같은 함수의 이전 실행에서 재사용할 수 있는 것: imports(`reuse: imports`인 작업은 설치된 "
        "Python 패키지를 미리 import해 둔 상태로 실행), 또는 none"
    ),
    "container_recycling": (
        "auto: L2에서 자리를 내기 위해 제거될 컨테이너를, 그 함수의 흔적이 남아 있지 않으면 "
        "다시 범용으로 만듦; never: 제거하고 새로 생성함"
    ),
    "python_bytecode": (
        "auto: Python 코드를 백그라운드에서 한 번 컴파일하고 이후 실행이 그 바이트코드를 씀; "
        "never: 실행마다 import한 모듈을 컴파일함"
    ),
    "container_max_age_seconds": (
        "만든 지 이 시간(초)이 지난 컨테이너는 폐기. 컨테이너마다 무작위로 최대 5분의 1만큼 일찍 폐기"
    ),
    "container_uid_base": (
        "컨테이너 사용자 id의 시작 값. 컨테이너마다 다른 id를 씀; Docker가 사용자 id를 다시 "
        "매핑하면 예를 들어 20000"
    ),
    "max_processes": "한 실행의 프로세스와 스레드 수",
    "max_open_files": "한 프로세스가 여는 파일 수",
    "max_file_mb": "실행 중에 쓸 수 있는 가장 큰 파일(MiB)",
    "tmp_max_mb": "/tmp의 크기(MiB, 메모리로 계산)",  # noqa: S108 - a sentence
    "work_max_mb": "실행이 작업 디렉터리에 쓸 수 있는 크기(MiB, 메모리로 계산)",
    "output_dir_max_mb": "/output의 크기(MiB, 메모리로 계산)",
    "max_inodes": "실행의 쓰기 가능한 각 디렉터리에 둘 수 있는 파일 수",
    "max_output_bytes": "stdout과 stderr를 자르는 크기(각각, 바이트)",
    "live_logs": (
        "실행 중에 출력을 Redis에 저장할 작업: followed(누군가 `nanoagent logs ID --follow`로 보는 작업), "
        "always(모든 작업), off(없음)"
    ),
    "live_logs_bytes_per_second": "실행 중에 저장하는 출력(초당 바이트). 넘는 출력은 세기만 함",
    "live_logs_max_bytes": "작업 하나의 실행 중 출력을 저장하는 최대 크기(바이트). 넘으면 오래된 것부터 삭제",
    "live_logs_ttl_seconds": "Redis가 실행 중 출력을 보관하는 시간(초)",
    "live_logs_max_jobs": "한 워커가 동시에 출력을 저장하는 작업 수. 넘는 작업의 출력은 끝난 뒤에만 보임",
    "output_max_files": "실행당 업로드하는 출력 파일 수",
    "output_max_file_mb": "가장 큰 출력 파일(MiB)",
    "output_max_total_mb": "한 실행의 출력 파일 전체 크기(MiB)",
    "output_url_style": "출력 파일 링크의 형식",
    "output_url_expires_seconds": "presigned 링크의 유효 시간(초)",
    "capsules": (
        "`nanoagent replay`와 `retry`를 위해 S3_USER_DATA_BUCKET에 캡슐을 남기는 작업: 성공하지 못한 "
        "작업(failed), 모든 작업(all), 없음(off)"
    ),
    "code_cache_dir": "코드와 빌드된 프로그램의 폴더. 여러 워커가 함께 쓸 수 있음",
    "min_free_disk_mb": (
        "CODE_CACHE_DIR와 DOCKER_WORK_DIR_ROOT가 있는 디스크의 여유 공간이 이보다 적으면 "
        "작업을 받지 않음(MiB); 0: 확인하지 않음"
    ),
    "code_cache_mb": "코드 캐시의 크기(MiB). 프로그램 캐시도 같은 크기",
    "code_fresh_seconds": "이 시간 동안은 코드가 바뀌었는지 S3에 다시 묻지 않음(초); 0: 작업마다 물음",
    "code_max_zip_mb": "코드 zip의 최대 크기(MiB)",
    "code_max_unpacked_mb": "압축을 푼 코드의 최대 크기(MiB)",
    "code_max_file_mb": "압축을 푼 코드에서 가장 큰 파일(MiB)",
    "code_max_entries": "압축을 푼 코드의 파일과 폴더 수",
    "build_timeout_seconds": "빌드 제한 시간(초)",
    "build_memory_mb": "빌드에 쓰는 메모리(MiB)",
    "failure_memory_seconds": (
        "실패한 빌드와 컨테이너를 죽이는 코드에 실패 캐시로 응답하는 시간(초); 0: 매번 시도"
    ),
    "build_cpus": "빌드가 차지하는 CPU 수; 남는 CPU가 있으면 더 씀",
    "build_cache": (
        "auto: C++나 Go 코드를 빌드할 때 같은 함수의 이전 빌드 이후 바뀐 파일만 컴파일함; "
        "never: 빌드마다 모든 파일을 컴파일함"
    ),
    "ai_endpoint": (
        "AI 게이트웨이의 모델 서버: Ollama 서버, 또는 openai 클라이언트에 주는 것과 같은 base URL"
    ),
    "ai_api_key": "모델 서버 AI_ENDPOINT의 키. 필요한 경우에만",
    "ai_upstreams": (
        '먼저 확인하는 다른 모델 서버들: JSON, `[{"url": …, "models": ["gpt-*"], "api": "openai", '
        '"key_env": "OPENAI_KEY"}]`; `api`는 openai, ollama, auto 중 하나이고, '
        "`key_env` 대신 `key`를 쓸 수 있음"
    ),
    "ai_model": "모델을 지정하지 않은 작업의 모델",
    "ai_models": "함수가 쓸 수 있는 모델: 쉼표로 구분한 이름. *는 임의의 문자열",
    "ai_max_tokens": "실행 하나가 쓸 수 있는 토큰(프롬프트와 답변); 0: 제한 없음",
    "ai_function_tokens_per_minute": (
        "이 워커에서 함수 하나의 모든 실행이 1분에 쓸 수 있는 토큰; 0: 제한 없음"
    ),
    "ai_max_requests": "실행 하나가 모델에 보낼 수 있는 요청 수; 0: 제한 없음",
    "ai_max_concurrent": "실행 하나가 모델에 동시에 보낼 수 있는 요청 수",
    "ai_max_request_bytes": "모델에 보내는 요청 하나의 최대 크기(바이트)",
    "ai_max_bytes": "실행 하나의 요청과 답변을 합한 크기(바이트); 0: 제한 없음",
    "ai_timeout_seconds": "모델에 보낸 요청 하나의 최대 시간(초)",
    "ai_drain_seconds": "작업이 연결을 끊은 답변을 토큰을 세기 위해 계속 읽는 시간(초)",
    "ai_remote_tools": "함수가 모델 서버에 URL 가져오기, 검색, 도구 실행, 저장된 데이터 읽기를 시킬 수 있음",
    "ai_record": "store: 실행이 모델에 보낸 요청과 답변을 출력 파일과 함께 업로드",
    "ai_replay": "AI_RECORD로 만든 기록의 폴더. 모델 서버 대신 그 기록으로 답함",
    "network": (
        "none: 아무 데도 연결할 수 없음; ai: 게이트웨이를 거쳐 모델에만; egress: 인터넷에도; "
        "작업이 더 좁게 요청할 수 있음 (`network`)"
    ),
    "network_max_connections": (
        "실행 하나가 게이트웨이와 인터넷에 동시에 열 수 있는 연결 수. 그 이상은 기다림"
    ),
    "egress_allow": "실행이 연결할 수 있는 호스트: 이름, *.접미사, 전체는 *; 쉼표로 구분",
    "egress_deny": "사설망 외에 실행이 연결할 수 없는 네트워크(CIDR); 쉼표로 구분",
    "egress_ports": "실행이 연결할 수 있는 TCP 포트; 쉼표로 구분",
    "secrets_allow": (
        "함수가 `env`에서 쓸 수 있는 시크릿: `shop-*=ssm:/prod/shop/**` 같은 규칙을 쉼표로 구분; "
        "비어 있으면 없음 (docs/secrets.md)"
    ),
    "secrets_cache_seconds": "시크릿의 값을 메모리에 보관하는 시간(초); 0: 보관하지 않음",
    "egress_max_mb": "실행 하나가 인터넷으로 보내고 받을 수 있는 양의 합(MiB)",
    "metrics_host": "메트릭과 헬스 체크의 주소",
    "metrics_port": "메트릭과 헬스 체크의 포트; 0이면 비어 있는 포트",
    "cloudwatch_enabled": "실행의 최대 메모리를 CloudWatch로 전송",
    "selftest_interval_seconds": "자체 점검의 주기(초). 첫 점검은 첫 작업 전에 실행; 0: 첫 점검도 하지 않음",
    "cloudwatch_interval_seconds": "CloudWatch 전송 주기(초)",
    "price_per_gb_second": "절감액을 계산할 때의 메모리 가격(AWS Lambda x86)",
    "price_per_request": "절감액을 계산할 때의 요청 하나의 가격",
    "price_currency": "두 가격의 통화",
    "savings_runs": "결과가 절감액을 보여 줄 때의 실행 횟수",
}

OUTCOMES_KO: Final[dict[ErrorType | None, str]] = {
    None: "종료 코드가 0이고 어떤 한도에도 걸리지 않음",
    ErrorType.USER_ERROR: "프로그램이 0이 아닌 종료 코드로 끝남",
    ErrorType.SIGNAL: "프로그램이 스스로 일으킨 시그널로 종료됨",
    ErrorType.TIMEOUT: "프로그램이 timeoutMs보다 오래 실행됨",
    ErrorType.OUT_OF_MEMORY: "memoryMb를 다 써서 커널이 실행 중인 프로세스를 종료함",
    ErrorType.DISK_LIMIT: "쓰기 가능한 디렉터리가 가득 찼거나 파일이 크기 한도에 도달함",
    ErrorType.PROCESS_LIMIT: "프로세스와 스레드 수의 한도에 도달함",
    ErrorType.BUILD_FAILED: "컴파일러가 코드를 거부함. 메시지는 stderr에 있음",
    ErrorType.INVALID_CODE: "zip이 아니거나, 위험한 zip이거나, 시작 파일이 없거나, 한도를 넘음",
    ErrorType.CODE_NOT_FOUND: "키나 버킷이 없거나 읽을 권한이 없음",
    ErrorType.INVALID_JOB: "메시지에 requestId는 있으나 다른 필드가 잘못되었거나, 참조한 시크릿을 쓸 수 없음",
    ErrorType.UNREADABLE: "메시지에서 requestId를 읽을 수 없음",
    ErrorType.PLATFORM: "Docker, S3, Redis, 디스크 또는 워커 자체의 문제",
    ErrorType.CANCELLED: "작업을 보낸 쪽이 취소함",
    ErrorType.INTERRUPTED: "워커가 작업을 끝낼 수 없었음. 이유는 `worker_jobs_returned_total`에 집계됨",
}

BLAME_KO: Final = {Blame.NOBODY: "-", Blame.USER: "사용자", Blame.PLATFORM: "플랫폼"}

SETTLE_KO: Final = {
    Settle.ACK: "삭제",
    Settle.POISON: (
        "큐에 redrive policy가 있으면 큐에 남겨 둠. 없고 `SQS_DLQ_URL`이 설정되어 있으면 "
        "그 큐로 이동. 둘 다 없으면 로그로 남기고 삭제"
    ),
    Settle.RETRY: "점점 길어지는 지연을 두고 되돌려 놓음. 마지막 시도 뒤에는 결과를 알리고 데드 레터 큐로",
    Settle.RELEASE: "큐에 되돌려 놓으며, 시도 횟수에 넣지 않음",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Settings that have a table together.

    Attributes:
        english: The heading in English.
        korean: The heading in Korean.
        settings: The settings in the order of the rows.
    """

    english: str
    korean: str
    settings: tuple[str, ...]


GROUPS: Final = (
    Group(
        "Queue",
        "큐",
        (
            "aws_region",
            "sqs_queue_url",
            "sqs_dlq_url",
            "sqs_wait_seconds",
            "sqs_visibility_seconds",
            "max_attempts",
            "retry_base_seconds",
            "retry_max_seconds",
        ),
    ),
    Group(
        "Results",
        "결과",
        (
            "redis_host",
            "redis_port",
            "redis_db",
            "redis_username",
            "redis_password",
            "redis_tls",
            "redis_tls_ca_file",
            "redis_tls_key_file",
            "redis_tls_cert_file",
            "result_ttl_seconds",
            "job_index_size",
            "job_index_ttl_seconds",
            "max_result_bytes",
            "result_spool_mb",
            "locale",
            "price_per_gb_second",
            "price_per_request",
            "price_currency",
            "savings_runs",
        ),
    ),
    Group(
        "Storage",
        "저장소",
        (
            "s3_code_bucket",
            "s3_user_data_bucket",
            "output_url_style",
            "output_url_expires_seconds",
            "capsules",
            "docker_work_dir_root",
            "min_free_disk_mb",
        ),
    ),
    Group(
        "Worker",
        "워커",
        (
            "worker_id",
            "worker_memory_mb",
            "worker_cpus",
            "function_max_share",
            "drain_seconds",
            "interruption_notices",
        ),
    ),
    Group(
        "Limits",
        "한도",
        (
            "max_memory_mb",
            "cpu_min",
            "cpu_max",
            "cpu_memory_mb",
            "cpu_burst",
            "max_processes",
            "max_open_files",
            "max_file_mb",
            "tmp_max_mb",
            "work_max_mb",
            "output_dir_max_mb",
            "max_inodes",
            "max_output_bytes",
            "live_logs",
            "live_logs_bytes_per_second",
            "live_logs_max_bytes",
            "live_logs_ttl_seconds",
            "live_logs_max_jobs",
            "output_max_files",
            "output_max_file_mb",
            "output_max_total_mb",
        ),
    ),
    Group(
        "Pool",
        "컨테이너 풀",
        (
            "docker_python_image",
            "docker_nodejs_image",
            "docker_cpp_image",
            "docker_go_image",
            "warm_pool_python_size",
            "warm_pool_nodejs_size",
            "warm_pool_cpp_size",
            "warm_pool_go_size",
            "container_idle_seconds",
            "container_max_runs",
            "container_max_age_seconds",
        ),
    ),
    Group(
        "Code",
        "코드",
        (
            "code_cache_dir",
            "code_cache_mb",
            "code_fresh_seconds",
            "code_max_zip_mb",
            "code_max_unpacked_mb",
            "code_max_file_mb",
            "code_max_entries",
            "build_timeout_seconds",
            "build_memory_mb",
            "build_cpus",
            "build_cache",
            "failure_memory_seconds",
            "python_preload",
            "function_reuse",
            "python_bytecode",
        ),
    ),
    Group(
        "Isolation",
        "격리",
        (
            "container_sharing",
            "container_recycling",
            "tenant_pattern",
            "min_isolation",
            "container_apparmor_profile",
            "docker_runtime",
            "container_uid_base",
            "selftest_interval_seconds",
        ),
    ),
    Group(
        "AI",
        "AI",
        (
            "ai_endpoint",
            "ai_api_key",
            "ai_upstreams",
            "ai_model",
            "ai_models",
            "ai_max_tokens",
            "ai_function_tokens_per_minute",
            "ai_max_requests",
            "ai_max_concurrent",
            "ai_max_request_bytes",
            "ai_max_bytes",
            "ai_timeout_seconds",
            "ai_drain_seconds",
            "ai_remote_tools",
            "ai_record",
            "ai_replay",
        ),
    ),
    Group(
        "Network",
        "네트워크",
        (
            "network",
            "network_max_connections",
            "egress_allow",
            "egress_deny",
            "egress_ports",
            "egress_max_mb",
        ),
    ),
    Group("Secrets", "시크릿", ("secrets_allow", "secrets_cache_seconds")),
    Group(
        "Telemetry",
        "원격 측정",
        (
            "log_level",
            "log_format",
            "metrics_host",
            "metrics_port",
            "cloudwatch_enabled",
            "cloudwatch_interval_seconds",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Language:
    """The parts of the tables that depend on the language.

    Attributes:
        readme: The document with the outcomes.
        configuration: The document with the settings.
        settings_head: The column headings of the settings.
        outcomes_head: The column headings of the outcomes.
        required: The text in place of a default for a required setting.
        default_mark: Separates a description from a default in words.
        heading: Returns the heading of a group.
        describe: Returns the description of a setting.
        meaning: Returns the condition for an outcome.
        blame: Returns the party at fault.
        settle: Returns how the message is settled.
    """

    readme: str
    configuration: str
    settings_head: tuple[str, ...]
    outcomes_head: tuple[str, ...]
    required: str
    default_mark: str
    heading: Callable[[Group], str]
    describe: Callable[[str], str]
    meaning: Callable[[ErrorType | None], str]
    blame: Callable[[Blame], str]
    settle: Callable[[Settle], str]


def _description(name: str) -> str:
    return Settings.model_fields[name].description or ""


LANGUAGES: Final = (
    Language(
        readme="README.md",
        configuration="docs/configuration.md",
        settings_head=("variable", "default", "meaning"),
        outcomes_head=("`errorType`", "`status`", "whose fault", "when", "the message is", "counted as"),
        required="**required**",
        default_mark="; default: ",
        heading=lambda group: group.english,
        describe=_description,
        meaning=lambda error_type: OUTCOMES[error_type].meaning,
        blame=lambda blame: blame.value,
        settle=lambda settle: settle.value,
    ),
    Language(
        readme="README.ko.md",
        configuration="docs/configuration.ko.md",
        settings_head=("변수", "기본값", "뜻"),
        outcomes_head=("`errorType`", "`status`", "책임", "언제", "메시지 처리", "집계 이름"),
        required="**필수**",
        default_mark="; 기본값: ",
        heading=lambda group: group.korean,
        describe=SETTINGS_KO.__getitem__,
        meaning=OUTCOMES_KO.__getitem__,
        blame=BLAME_KO.__getitem__,
        settle=SETTLE_KO.__getitem__,
    ),
)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _as_written(default: object) -> str:
    """A default as one would write it into `.env`."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, Decimal):
        return f"{default:f}"
    return str(default)


def _settings_row(name: str, field: FieldInfo, language: Language) -> tuple[str, str, str]:
    meaning, _, in_words = language.describe(name).partition(language.default_mark)
    if field.is_required():
        default = language.required
    elif in_words:
        default = in_words
    else:
        default = "-" if field.default in {None, ""} else f"`{_as_written(field.default)}`"
    return f"`{name.upper()}`", default, meaning


def settings_tables(language: Language) -> str:
    """Return a heading and a table for each group of settings."""
    parts = []
    for group in GROUPS:
        rows = [_settings_row(name, Settings.model_fields[name], language) for name in group.settings]
        parts += [f"### {language.heading(group)}", _table(language.settings_head, rows)]
    return "\n{}\n".format("\n\n".join(parts))


def outcomes_table(language: Language) -> str:
    """Return the table of `nanoagent.model.result.OUTCOMES`."""
    rows = [
        (
            f"`{error_type}`" if error_type else "-",
            f"`{outcome.status}`" if outcome.status else "-",
            language.blame(outcome.blame),
            language.meaning(error_type),
            language.settle(outcome.settle),
            f"`{outcome.label}`",
        )
        for error_type, outcome in OUTCOMES.items()
    ]
    return _table(language.outcomes_head, rows)


def regenerated(text: str, tables: dict[str, str], file: str) -> str:
    """Return the document with its tables replaced.

    Args:
        text: The document.
        tables: The tables by the name in their markers.
        file: The document's name, for the error.

    Raises:
        ValueError: The document has the markers of a table not exactly once.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        between = re.compile(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
        text, count = between.subn(lambda _, table=table: f"{table}\n", text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{file} has {begin} and {end} {count} times; expected once")
    return text


def _documents() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each document with its tables."""
    for language in LANGUAGES:
        yield language.readme, {"outcomes": outcomes_table(language)}
        yield language.configuration, {"settings": settings_tables(language)}


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Rewrite the documents below `root`, or check them; return the exit code."""
    stale = False
    for file, tables in _documents():
        path = root / file
        before = path.read_text(encoding="utf-8")
        after = regenerated(before, tables, file)
        if after == before:
            continue
        stale = True
        if "--check" in arguments:
            lines = (before.splitlines(keepends=True), after.splitlines(keepends=True))
            sys.stdout.writelines(difflib.unified_diff(*lines, file, f"{file} (generated)"))
        else:
            path.write_text(after, encoding="utf-8")
            sys.stdout.write(f"{file} rewritten\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
