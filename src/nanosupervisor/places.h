/* The folders that a run can write to. */
#ifndef PLACES_H
#define PLACES_H

#define WORK_DIR "/work"
#define INPUT_DIR "/input"
#define OUTPUT_DIR "/output"
#define PAYLOAD_NAME "payload.json"
#define PAYLOAD_FILE INPUT_DIR "/" PAYLOAD_NAME

enum place { PLACE_WORK, PLACE_TMP, PLACE_OUTPUT, PLACE_INPUT, PLACE_SHM, PLACE_COUNT };

/* Where a place is mounted, in the container as in a sandbox. */
extern const char *const place_path[PLACE_COUNT];

#endif
