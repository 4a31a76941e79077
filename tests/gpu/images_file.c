// SPDX-License-Identifier: MIT
/*
 * The kernels for GPUs as kernels/cuda/images.h declares them, but from files: seven
 * programs share those of one folder, and a bundle has room for them once only. It is
 * kernels/cuda, where tests/gpu is too: in the folder of a build and in a bundle. Linked
 * before the archive of kernels, whose own are then left there.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "kernels/cuda/images.h"

#define SUFFIX		".fatbin"
#define MOST		16	/* as the loader of kernels takes */

/* Constant for all but the constructor below, which is done before anybody reads them. */
static struct cqk_cuda_image images[MOST] = {
	{ "none", "cq: built without nvcc", sizeof("cq: built without nvcc") },
};
static uint32_t num_images = 1, num_built;

extern const struct cqk_cuda_image cqk_cuda_images[MOST] __attribute__((alias("images")));
extern const uint32_t cqk_cuda_num_images __attribute__((alias("num_images")));
extern const uint32_t cqk_cuda_num_built __attribute__((alias("num_built")));

static _Noreturn void die(const char *what)
{
	perror(what);
	exit(2);
}

/*
 * The folder of kernels, found from where the code of this program is mapped from.
 * /proc/self/exe is the loader if that was what was run, as a bundle does where the
 * machine's C library is too old.
 */
static char *find_folder(void)
{
	uintptr_t here = (uintptr_t)find_folder, from, to;
	FILE *f = fopen("/proc/self/maps", "re");
	char *line = NULL, *path = NULL, *folder;
	size_t size = 0;

	while (f && !path && getline(&line, &size, f) > 0)
		if (sscanf(line, "%lx-%lx", &from, &to) == 2 && from <= here && here < to)
			path = strchr(line, '/');
	if (!path)
		die("/proc/self/maps");
	*strrchr(path, '/') = '\0';
	if (asprintf(&folder, "%s/../../kernels/cuda", path) < 0)
		die(path);
	free(line);
	fclose(f);
	return folder;
}

static const void *map_file(const char *file, uint64_t *size)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *at;

	if (fd < 0 || fstat(fd, &st))
		die(file);
	*size = (uint64_t)st.st_size;
	at = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED)
		die(file);
	close(fd);
	return at;
}

static int is_fatbin(const struct dirent *e)
{
	size_t len = strlen(e->d_name), end = strlen(SUFFIX);

	return len > end && !strcmp(e->d_name + len - end, SUFFIX);
}

static __attribute__((constructor)) void map_images(void)
{
	char *folder = find_folder(), *file, *name;
	struct dirent **found = NULL;
	int n = scandir(folder, &found, is_fatbin, alphasort), i;

	if (n < 0 && errno != ENOENT)
		die(folder);
	if (n > MOST) {
		fprintf(stderr, "%s: %d images of kernels\n", folder, n);
		exit(2);
	}
	for (i = 0; i < n; i++) {
		name = found[i]->d_name;
		if (asprintf(&file, "%s/%s", folder, name) < 0)
			die(name);
		images[i].data = map_file(file, &images[i].size);
		free(file);
		name[strlen(name) - strlen(SUFFIX)] = '\0';
		images[i].name = name;
	}
	free(found);
	free(folder);
	if (n > 0)
		num_images = num_built = (uint32_t)n;
}
