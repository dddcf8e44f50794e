/* The interpreter's record of the program with which it was started. The interpreter uses the record for
 * subinterpreters, and for the error message about a file that has the name of a standard module. */
#ifndef ZYGOTE_CONFIG_H
#define ZYGOTE_CONFIG_H

/* Record `path` in `directory` as the program, instead of the zygote's own program. Return 0, or -1 if there is
 * no memory. */
int config_set_program(const wchar_t *directory, const wchar_t *path);
/* Whether the program has added audit hooks. */
int config_has_audit_hooks(void);

#endif
