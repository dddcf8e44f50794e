/* The interpreter's record of its program, made at its start. Subinterpreters read it later, and so does the message
 * about a file that has the name of a standard module. */
#ifndef ZYGOTE_CONFIG_H
#define ZYGOTE_CONFIG_H

/* Set the program to this folder's main.py instead of the zygote's. 0, or -1 without memory. */
int config_set_program(const wchar_t *folder, const wchar_t *path);
/* Whether the program has added audit hooks. */
int config_has_audit_hooks(void);

#endif
