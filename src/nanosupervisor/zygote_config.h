/* The interpreter's record of its program, made at its start. Subinterpreters read it later, and so does
 * the error message for a file that has the name of a standard module. */
#ifndef ZYGOTE_CONFIG_H
#define ZYGOTE_CONFIG_H

/* Record main.py in this directory as the program, instead of the zygote's own; 0, or -1 if there is no
 * memory. */
int config_set_program(const wchar_t *directory, const wchar_t *path);
/* Whether the program has added audit hooks. */
int config_has_audit_hooks(void);

#endif
