/* SPDX-License-Identifier: MIT */
/* For programs: standard descriptors that a caller closed. */
#ifndef CQ_STDFDS_H
#define CQ_STDFDS_H

#include <fcntl.h>
#include <unistd.h>

/**
 * cq_stdfds_hold() - let nothing that is opened later become descriptor 0, 1 or 2
 *
 * First thing in main(). What is written to the standard output or error of a
 * program would else end in a connection, a model file, or shared memory. What
 * was closed can be read (it is empty) but not written: -EBADF as before.
 */
static inline void cq_stdfds_hold(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDONLY);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

#endif /* CQ_STDFDS_H */
