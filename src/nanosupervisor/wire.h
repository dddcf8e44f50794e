/* Frames between the agent and the supervisor.
 *
 * A frame is: u32 length of the payload, u8 type, payload. Integers are little-endian, as both
 * supported machines are. The host's end is src/nanoagent/supervisor/wire.py; PROTOCOL_VERSION changes
 * whenever either would misunderstand the other, and the agent refuses a supervisor of another version.
 */
#ifndef WIRE_H
#define WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define PROTOCOL_VERSION 4u

/* agent -> supervisor */
#define FRAME_CONFIGURE 'C' /* struct configuration, its listening addresses, then NUL-terminated modules for the zygote */
#define FRAME_PREPARE 'P' /* take over the code in the slot folder: u8: have limits changed that an interpreter
                             looks at when it starts?, then NUL-terminated modules that the code imports */
#define FRAME_RUN 'R'     /* struct run_request, then its strings and the payload */
#define FRAME_KILL 'K'    /* end the run now */

/* supervisor -> agent */
#define FRAME_HELLO 'H'   /* u32 protocol version */
#define FRAME_LEVEL 'L'   /* u8 level of isolation, then why it is not a higher one, as text */
#define FRAME_READY 'Y'   /* struct ready_report: the workspace is prepared, or why not */
#define FRAME_EXIT 'X'    /* struct exit_report */
#define FRAME_STDOUT 'O'  /* captured bytes, first the head, then the tail */
#define FRAME_STDERR 'E'
#define FRAME_FILE 'F'    /* u64 size, then the path below /output; followed by DATA frames of that size */
#define FRAME_DATA 'D'
#define FRAME_REFUSED 'N' /* u8 reason, then the path of what is not sent; none: all of it */
#define FRAME_DONE 'Z'    /* u8: nothing of the run is left; 0: the container must not be used again */

#define LEVEL_SHARED 1u  /* a program runs in the container itself */
#define LEVEL_SANDBOX 2u /* each program runs in namespaces and mounts of its own */

struct __attribute__((packed)) configuration {
    uint8_t highest_level;    /* not to be exceeded, whatever is possible */
    uint64_t file_size_bytes; /* what a run will most likely be confined to */
    uint32_t open_files;
    uint64_t work_bytes;      /* what a run may write to its working directory; the container's has room for code too */
    uint64_t work_files;
    uint8_t listening_count;       /* so many struct listening_address follow */
};

#define MAX_LISTENING_SOCKETS 16u
#define LISTENING_TCP 1u
#define LISTENING_UDP 2u

/* Where in a program's network the agent wants to listen (listening.h). */
struct __attribute__((packed)) listening_address {
    uint8_t kind;
    uint8_t address[4]; /* IPv4 */
    uint16_t port;
};

struct __attribute__((packed)) run_request {
    uint32_t timeout_ms;
    uint32_t grace_ms;         /* between SIGTERM and SIGKILL */
    uint32_t capture_bytes;    /* of each stream */
    uint64_t file_size_bytes;  /* RLIMIT_FSIZE */
    uint32_t open_files;       /* RLIMIT_NOFILE */
    uint32_t output_max_files;
    uint64_t output_max_file_bytes;
    uint64_t output_max_total_bytes;
    uint32_t argument_count;
    uint32_t environment_count;
    uint32_t payload_bytes;
    uint8_t prepare_next;      /* copy the code again afterwards: another run will follow */
};

struct __attribute__((packed)) ready_report {
    uint32_t error; /* errno, 0: ready */
    uint32_t files;
    uint64_t bytes;
};

#define EXIT_TIMED_OUT 1u   /* the deadline ended it */
#define EXIT_KILLED 2u      /* FRAME_KILL ended it */
#define EXIT_DISK_FULL 4u   /* a writable place has no block or no inode left */
#define EXIT_FILE_LIMIT 8u  /* a file has reached file_size_bytes */
#define EXIT_NOT_STARTED 16u /* exec failed: exec_error says why */
#define EXIT_ORPHANED 32u    /* the zygote ended during the run, and with it who would have told the program's end */
#define EXIT_SOCKETS 64u     /* it was ended: its sockets hold too much of the kernel's memory */

struct __attribute__((packed)) exit_report {
    uint32_t wait_status;
    uint32_t flags;
    uint64_t wall_us;
    uint64_t user_us;
    uint64_t system_us;
    uint64_t stdout_total;
    uint64_t stderr_total;
    uint32_t stdout_kept;
    uint32_t stderr_kept;
    uint32_t left_over;  /* processes that outlived the program and were killed */
    uint32_t exec_error; /* errno */
};

enum refusal {
    REFUSED_LINK = 1,
    REFUSED_SPECIAL = 2,
    REFUSED_COUNT = 3,
    REFUSED_SIZE = 4,
    REFUSED_TOTAL = 5,
    REFUSED_DEPTH = 6,
    REFUSED_UNREADABLE = 7,
};

/* Connect to the agent, or exit. */
void wire_connect(const char *path);
/* The connection's descriptor, for poll(). */
int wire_fd(void);
/* Send one frame, at the latest with the next wire_flush(). The agent gone means that nobody wants this
 * container: exits. */
void wire_send(char type, const void *payload, size_t length);
/* The same with the payload in two pieces. */
void wire_send2(char type, const void *first, size_t first_length, const void *second, size_t second_length);
/* Send what is still held back: frames leave together, so that the agent wakes once for all of them. */
void wire_flush(void);
/* Receive one frame into a fresh buffer, which the caller frees; exits when the agent is gone. */
char wire_receive(uint8_t **payload, size_t *length);
/* Send all of the parts to a socket, which may be another than the agent's; 0 when its other end is gone. */
int wire_send_parts(int to, struct iovec *parts, size_t count);
/* Exit with a message on standard error, which the agent shows with a container that did not come up. */
__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);

#endif
