/* Residue: a difference between the container now and the container when process 1 had just started. The launcher looks
 * for it when every other process has ended. */
#ifndef RESIDUE_H
#define RESIDUE_H

#define RESIDUE_TEXT 160 /* room for a description, with its NUL */

/* Note the state of the container. Call this once, before any other process exists. Exits if the state cannot be
 * read. */
void residue_note_start(void);
/* Whether something is left; if so, describe it. Waits for a moment, because the kernel removes some objects a little
 * later than their last process. */
int residue_exists(char text[RESIDUE_TEXT]);

#endif
