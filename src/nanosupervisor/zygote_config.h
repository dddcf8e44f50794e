/* What the interpreter has noted about its program when it came up, for those who ask later: sub-interpreters, and the
 * message about a file that has the name of a standard module. */
#ifndef ZYGOTE_CONFIG_H
#define ZYGOTE_CONFIG_H

/* Have it be this folder's main.py instead of the zygote's. 0, or -1 without memory. */
int config_set_program(const wchar_t *folder, const wchar_t *path);
/* Whether the program has added audit hooks. */
int config_has_audit_hooks(void);

#endif
