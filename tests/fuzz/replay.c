// SPDX-License-Identifier: MIT
/*
 * Runs a fuzzer over its corpus, as one TAP test: what a fuzzer once found
 * stays found, with any compiler. The program's own name, replay_fuzz_foo,
 * names the corpus, fuzz_foo or foo; file or folder arguments replace it.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECONDS_PER_INPUT 10

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char current[1024];
static int inputs;

/* The input that was running is the report; ASan has printed its own. */
static void died(int sig)
{
	static const char text[] = "# died on ";

	if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0 ||
	    write(STDOUT_FILENO, current, strlen(current)) < 0 ||
	    write(STDOUT_FILENO, "\n", 1) < 0)
		_exit(2);
	signal(sig, SIG_DFL);
	raise(sig);
}

static int replay_file(const char *path)
{
	uint8_t *data;
	size_t size;
	long end;
	FILE *f;

	f = fopen(path, "rbe");
	if (!f || fseek(f, 0, SEEK_END) < 0)
		goto err_file;
	end = ftell(f);
	if (end < 0)
		goto err_file;
	rewind(f);
	/* Exactly as large as the input, so that ASan sees a read past its end. */
	data = malloc((size_t)end ? (size_t)end : 1);
	if (!data)
		goto err_file;
	size = fread(data, 1, (size_t)end, f);
	fclose(f);
	snprintf(current, sizeof(current), "%s", path);
	alarm(SECONDS_PER_INPUT);
	LLVMFuzzerTestOneInput(data, size);
	alarm(0);
	free(data);
	inputs++;
	return 0;

err_file:
	printf("# %s: %s\n", path, strerror(errno));
	if (f)
		fclose(f);
	return -1;
}

static int replay(const char *path)
{
	char file[1024];
	struct dirent *e;
	struct stat st;
	int ret = 0;
	DIR *d;

	if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
		return replay_file(path);
	d = opendir(path);
	if (!d)
		return -1;
	while (!ret && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(file, sizeof(file), "%s/%s", path, e->d_name);
		ret = replay_file(file);
	}
	closedir(d);
	return ret;
}

int main(int argc, char **argv)
{
	static const int fatal[] = { SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE, SIGALRM };
	const char *name = strstr(argv[0], "replay_fuzz_");
	char corpus[512];
	int ret = 0, i;

	printf("TAP version 13\n1..1\n");
	fflush(stdout);
	for (i = 0; i < (int)(sizeof(fatal) / sizeof(fatal[0])); i++)
		signal(fatal[i], died);
	for (i = 1; !ret && i < argc; i++)
		ret = replay(argv[i]);
	if (argc == 1 && name) {
		name += strlen("replay_");
		snprintf(corpus, sizeof(corpus), "tests/fuzz/corpus/%s", name);
		if (access(corpus, F_OK) < 0)
			snprintf(corpus, sizeof(corpus), "tests/fuzz/corpus/%s",
				 name + strlen("fuzz_"));
		ret = replay(corpus);
	}
	if (!inputs)
		ret = -1;
	printf("%s 1 - %d inputs\n", ret ? "not ok" : "ok", inputs);
	return ret ? 1 : 0;
}
