/* Frames between the worker and the supervisor.
 *
 * A frame is: u32 length of the payload, u8 type, payload. Integers are little-endian, as on both
 * supported machines. The worker's end is src/nanoagent/supervisor/wire.py. PROTOCOL_VERSION changes
 * whenever one end would misunderstand the other. The worker refuses a supervisor of another version. */
#ifndef WIRE_H
#define WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define PROTOCOL_VERSION 10u

enum frame_type {
    /* worker -> supervisor */
    FRAME_CONFIGURE = 'C', /* struct configuration, its listening addresses, then NUL-terminated names of modules that
                              the zygote imports */
    FRAME_PREPARE = 'P',   /* take the packs in /slot (unpack.h). u8: PREPARE_…; then NUL-terminated names of modules that
                              the code imports */
    FRAME_RUN = 'R',       /* struct run_request, then its strings and the payload */
    FRAME_KILL = 'K',      /* empty: end the run now */
    FRAME_FOLLOW = 'W',    /* u8. 1: send the output of the current run as with LIVE_LIMITED. 0: stop that */

    /* supervisor -> worker */
    FRAME_HELLO = 'H',   /* u32 protocol version */
    FRAME_LEVEL = 'L',   /* u8 isolation level, then text: the reason if the host does not allow sandboxes */
    FRAME_READY = 'Y',   /* struct ready_report */
    FRAME_LIVE = 'V',    /* struct live_header, then output of the running program (live.h) */
    FRAME_EXIT = 'X',    /* struct exit_report */
    FRAME_STDOUT = 'O',  /* captured bytes: first the head, then the tail */
    FRAME_STDERR = 'E',  /* captured bytes, as for FRAME_STDOUT */
    FRAME_FILE = 'F',    /* u64 size, then the path below /output; DATA frames with so many bytes follow */
    FRAME_DATA = 'D',    /* bytes of a file */
    FRAME_REFUSED = 'N', /* u8 reason, then the path that is not sent; an empty path means all of /output */
    FRAME_DONE = 'Z',    /* u8. 1: nothing of the run is left. 0: the container must not be used again */
};

#define PREPARE_LIMITS_CHANGED 1u /* the memory limit has changed, which an interpreter reads when it starts */
#define PREPARE_REUSE 2u          /* import the installed packages once, for all runs (importer.h) */

/* Whether runs get the installed packages of their code imported, and the reason if they do not. */
enum imports_state {
    IMPORTS_OFF = 0,         /* not requested */
    IMPORTS_REUSED = 1,
    IMPORTS_UNAVAILABLE = 2, /* the isolation level, the language or the host does not allow it */
    IMPORTS_NONE = 3,        /* the code imports no installed package */
    IMPORTS_SHADOWED = 4,    /* the code has a file with the name of a module that the zygote has imported */
    IMPORTS_FAILED = 5,      /* an import has raised an exception */
    IMPORTS_SLOW = 6,        /* the imports, or the creation of a sandbox with a fork */
    IMPORTS_ENDED = 7,       /* the importer has ended, or has broken the protocol */
    IMPORTS_PRINTED = 8,
    IMPORTS_FILES = 9,       /* files were written */
    /* An import has left one of these: */
    IMPORTS_THREADS = 10,
    IMPORTS_CHILDREN = 11,
    IMPORTS_DESCRIPTORS = 12,
    IMPORTS_SIGNALS = 13,     /* signal handlers or timers */
    IMPORTS_PROCESS = 14,     /* another working directory, umask or limit */
    IMPORTS_ENVIRONMENT = 15, /* other environment variables */
    IMPORTS_INTERPRETER = 16, /* another sys.path, other streams, hooks or settings of the interpreter */
    IMPORTS_MEMORY = 17,      /* writable memory that forks share */
    IMPORTS_OWN_CODE = 18,    /* a package has imported a module that belongs to no installed package */
    IMPORTS_STATES
};

#define LEVEL_SHARED 1u  /* a program runs in the container itself */
#define LEVEL_SANDBOX 2u /* each program runs in its own namespaces and mounts */

#define MAX_LISTENING_SOCKETS 16u
#define LISTENING_TCP 1u
#define LISTENING_UDP 2u

/* An address in the network of a run at which the worker listens (listening.h). */
struct __attribute__((packed)) listening_address {
    uint8_t kind; /* LISTENING_TCP or LISTENING_UDP */
    uint8_t address[4]; /* IPv4 */
    uint16_t port;
};

struct __attribute__((packed)) configuration {
    uint8_t highest_level;    /* the isolation level that the worker wants; the container has a launcher if it is L2 */
    /* The limits of pre-created processes. If a run (a build) requests other limits, it gets a new sandbox. */
    uint64_t file_size_bytes; /* RLIMIT_FSIZE */
    uint32_t open_files;      /* RLIMIT_NOFILE */
    uint64_t work_bytes;      /* how much a run in a sandbox may write to its working directory */
    uint64_t work_files;      /* how many files such a run may create there */
    uint8_t listening_count;  /* number of struct listening_address that follow */
};

/* Whether the output of a run is sent during the run, too. */
enum live_mode {
    LIVE_OFF = 0,
    LIVE_LOSSLESS = 1, /* all of it: the program waits while the worker does not receive */
    LIVE_LIMITED = 2,  /* at most live_bytes_per_s: the rest is skipped, and the program never waits (follow.h) */
};

struct __attribute__((packed)) live_header {
    char stream;       /* FRAME_STDOUT or FRAME_STDERR */
    uint64_t position; /* number of bytes of the stream before this output */
};

struct __attribute__((packed)) run_request {
    uint32_t timeout_ms;      /* wall time of the program */
    uint32_t grace_ms;        /* between SIGTERM and SIGKILL */
    uint32_t capture_bytes;   /* how many bytes of stdout are kept; the same for stderr */
    uint64_t file_size_bytes; /* RLIMIT_FSIZE */
    uint32_t open_files;      /* RLIMIT_NOFILE */
    uint32_t output_max_files;
    uint64_t output_max_file_bytes;
    uint64_t output_max_total_bytes;
    uint32_t argument_count;
    uint32_t environment_count;
    uint32_t payload_bytes;
    uint8_t prepare_next; /* whether another run of the same code will follow: get ready for it */
    uint8_t live;         /* enum live_mode */
    uint32_t live_bytes_per_s; /* the limit of LIVE_LIMITED, also after FRAME_FOLLOW */
};

struct __attribute__((packed)) ready_report {
    uint32_t error; /* 0: ready; else the errno of the failure: EBADMSG for a damaged pack */
    uint32_t files; /* made */
    uint64_t bytes; /* made */
    uint8_t imports; /* enum imports_state */
};

#define EXIT_TIMED_OUT 1u    /* the program was ended at its deadline */
#define EXIT_KILLED 2u       /* FRAME_KILL ended the program */
#define EXIT_DISK_FULL 4u    /* a writable directory has no free block or no free inode */
#define EXIT_FILE_LIMIT 8u   /* the program failed, probably because a file has reached file_size_bytes */
#define EXIT_NOT_STARTED 16u /* the program could not be started: exec_error has the errno */
#define EXIT_ORPHANED 32u    /* the zygote ended during the run, so the program's wait status is unknown */
#define EXIT_SOCKETS 64u     /* the program was ended: its sockets hold too much kernel memory */
#define EXIT_CREATING 128u   /* another sandbox existed when the program was started, perhaps not complete */
/* Only with EXIT_TIMED_OUT; the state at the deadline (activity.h): */
#define EXIT_LISTENING 256u /* a TCP socket of the run was listening */
#define EXIT_COMPUTING 512u /* a thread was running, or was waiting for a CPU */
#define EXIT_WAITING 1024u  /* no thread was */

struct __attribute__((packed)) exit_report {
    uint32_t wait_status; /* as from waitpid(2) */
    uint32_t flags;       /* EXIT_… */
    uint64_t wall_us;
    uint64_t user_us;
    uint64_t system_us;
    uint64_t stdout_total; /* bytes printed */
    uint64_t stderr_total;
    uint32_t stdout_kept; /* bytes captured */
    uint32_t stderr_kept;
    uint32_t left_over;  /* other processes of the run that were killed; counted only at the shared level */
    uint32_t exec_error; /* errno, 0: the program was started */
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

/* Connect to the worker. Exits if that fails. */
void wire_connect(const char *path);
/* The connection's descriptor, for poll(). */
int wire_fd(void);
/* Send bytes of a frame now, behind everything that was sent before. Exits as wire_send() does. */
void wire_send_raw(const void *data, size_t length);
/* As wire_send_raw(), but send only the bytes that the worker can receive without waiting; return their number. */
size_t wire_send_now(const void *data, size_t length);
/* Send one frame, at the latest with the next wire_flush(). Exits if the worker has closed the connection,
 * because then this container is not needed any more. */
void wire_send(enum frame_type type, const void *payload, size_t length);
/* Send one frame whose payload is in two pieces. */
void wire_send2(enum frame_type type, const void *first, size_t first_length, const void *second, size_t second_length);
/* Send all buffered frames in one write, so that the worker wakes up once for all of them. */
void wire_flush(void);
/* Send READY at once. */
void wire_send_ready(const struct ready_report *report);
/* Send DONE, at the latest with the next wire_flush(). */
void wire_send_done(int is_clean);
/* Receive one frame into a new buffer, which the caller frees. Exits if the worker has closed the
 * connection. */
enum frame_type wire_receive(uint8_t **payload, size_t *length);
/* Send all parts to any stream socket; 0 if its other end is closed. Changes the parts. */
int wire_send_parts(int to, struct iovec *parts, size_t count);
/* Exit with a message on standard error. If errno is set, its text is added. The worker shows the message if
 * the container does not start. */
__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);

#endif
