// SPDX-License-Identifier: MIT
/*
 * doctor: is this machine fit for cqd, and cqd well? Works without a daemon, and
 * for everybody; what only root may see is said to be so.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <libgen.h>
#include <limits.h>
#include <pwd.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "client/cqctl/doctor.h"

#define CONFIG "/etc/cq/cqd.conf"
#define MAX_GROUPS 1024

void doc_text(struct doc_finding *f, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(f->text, sizeof(f->text), fmt, ap);
	va_end(ap);
}

void doc_remedy(struct doc_finding *f, enum doc_level level, const char *fmt, ...)
{
	va_list ap;

	f->level = MAX(f->level, level);
	va_start(ap, fmt);
	vsnprintf(f->remedy, sizeof(f->remedy), fmt, ap);
	va_end(ap);
}

bool doc_read(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, buf, size - 1);
	close(fd);
	if (n <= 0)
		return false;
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return true;
}

/* --- the installation --- */

/* Beside this program, or where it is installed. */
static bool find_cqd(char path[PATH_MAX])
{
	static const char *const places[] = {
		"%s/cqd", "%s/../sbin/cqd", "/usr/sbin/cqd", "/usr/local/sbin/cqd",
	};
	static char self[PATH_MAX - 16];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	const char *dir;
	size_t i;

	if (n < 0)
		return false;
	self[n] = '\0';
	dir = dirname(self);
	for (i = 0; i < ARRAY_SIZE(places); i++) {
		if (places[i][0] == '%')
			snprintf(path, PATH_MAX, "%s%s", dir, places[i] + 2);
		else
			snprintf(path, PATH_MAX, "%s", places[i]);
		if (!access(path, X_OK))
			return true;
	}
	return false;
}

/* Runs "cqd --check-config": its status, and what it says. -errno if it did not. */
static int run_check(char *cqd, char *said, size_t size)
{
	char option[] = "--check-config", *argv[] = { cqd, option, NULL };
	posix_spawn_file_actions_t fa;
	size_t n = 0;
	ssize_t got;
	pid_t pid;
	int p[2], status = 0, ret;

	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_adddup2(&fa, p[1], STDOUT_FILENO);
	posix_spawn_file_actions_adddup2(&fa, p[1], STDERR_FILENO);
	ret = posix_spawn(&pid, cqd, &fa, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	close(p[1]);
	while (!ret && n + 1 < size && (got = read(p[0], said + n, size - 1 - n)) > 0)
		n += (size_t)got;
	said[n] = '\0';
	close(p[0]);
	if (ret)
		return -ret;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -EIO;
}

static void check_config(struct ctl *c, struct doc_finding *f)
{
	static char cqd[PATH_MAX];	/* large: not on the stack */
	char said[300], *line = said;
	int ret;

	if (!find_cqd(cqd)) {
		doc_text(f, "cqd is not installed beside cqctl");
		doc_remedy(f, DOC_PROBLEM, "make install");
		return;
	}
	if (!access(CONFIG, F_OK) && access(CONFIG, R_OK)) {
		doc_text(f, CONFIG " cannot be read by you");
		doc_remedy(f, DOC_WARNING, "run cqctl doctor as root");
		return;
	}
	ret = run_check(cqd, said, sizeof(said));
	said[strcspn(said, "\n")] = '\0';
	if (line[0] == '<' && line[1] && line[2] == '>')
		line += 3;	/* the level of a log line */
	doc_text(f, "%s", ret < 0 ? strerror(-ret) : line);
	if (ret)
		doc_remedy(f, DOC_PROBLEM, "cqd does not start with it: correct the file, then "
			   "cqd --check-config");
}

static bool in_group(gid_t gid)
{
	static gid_t list[MAX_GROUPS];	/* large: not on the stack */
	int n = getgroups(MAX_GROUPS, list);

	while (n-- > 0)
		if (list[n] == gid)
			return true;
	return getegid() == gid;
}

static void check_group(struct ctl *c, struct doc_finding *f)
{
	/* cppcheck-suppress getgrnamCalled ; one thread */
	const struct group *gr = getgrnam("cq");

	if (!gr) {
		doc_text(f, "there is no group cq");
		doc_remedy(f, DOC_WARNING, "systemd-sysusers makes it after make install");
	} else if (!geteuid()) {
		doc_text(f, "you are root; workers must be members of cq (gid %u)", gr->gr_gid);
	} else if (in_group(gr->gr_gid)) {
		doc_text(f, "you are a member of cq");
	} else {
		doc_text(f, "you are no member of cq");
		doc_remedy(f, DOC_WARNING, "usermod -aG cq USER, then log in again: members "
			   "reach the workers' socket");
	}
}

/* --- the daemon --- */

static void look_at_socket(struct doc_finding *f, const char *path, mode_t most)
{
	/* cppcheck-suppress getpwuidCalled ; one thread */
	const struct passwd *pw;
	struct stat st;

	if (lstat(path, &st) < 0) {
		doc_text(f, "%s: %s", path, strerror(errno));
		doc_remedy(f, DOC_PROBLEM, "systemctl enable --now cqd.socket cqd-admin.socket");
		return;
	}
	/* cppcheck-suppress getpwuidCalled ; one thread */
	pw = getpwuid(st.st_uid);
	doc_text(f, "%s, mode %04o, of %s", path, st.st_mode & 07777, pw ? pw->pw_name : "?");
	if (!S_ISSOCK(st.st_mode))
		doc_remedy(f, DOC_PROBLEM, "it is no socket: remove it and start cqd again");
	else if (st.st_mode & 07777 & ~most)
		doc_remedy(f, DOC_WARNING, "more than %04o: whoever reaches it may %s", most,
			   most == 0600 ? "administer cqd" : "try to enter a namespace");
}

static void check_socket(struct ctl *c, struct doc_finding *f)
{
	const char *env = getenv("CQ_SOCKET");

	look_at_socket(f, env && env[0] ? env : CQP_DEFAULT_SOCKET, 0666);
}

static const char *admin_path(const struct ctl *c)
{
	const char *env = getenv("CQ_ADMIN_SOCKET");

	return c->socket ? c->socket : env && env[0] ? env : CQP_DEFAULT_ADMIN;
}

static void check_admin(struct ctl *c, struct doc_finding *f)
{
	look_at_socket(f, admin_path(c), 0600);
}

static Cqp__Msg *ping(struct ctl *c, int *ret)
{
	Cqp__Msg msg = CQP__MSG__INIT;
	Cqp__Ping body = CQP__PING__INIT;

	msg.body_case = CQP__MSG__BODY_PING;
	msg.ping = &body;
	return ctl_call(c, &msg, -1, CQP__MSG__BODY_PONG, ret);
}

static void check_daemon(struct ctl *c, struct doc_finding *f)
{
	struct ctl worker = { .sock = -1, .next_id = 1, .socket = getenv("CQ_SOCKET") };
	char up[24];
	Cqp__Msg *pong;
	int ret;

	pong = ping(c, &ret);
	if (!pong && (ret == -EACCES || ret == -EPERM)) {
		if (!worker.socket || !worker.socket[0])
			worker.socket = CQP_DEFAULT_SOCKET;
		pong = ping(&worker, &ret);
		ctl_disconnect(&worker);
	}
	if (!pong) {
		doc_text(f, "%.300s", c->err.text);
		doc_remedy(f, DOC_PROBLEM, "see systemctl status cqd, journalctl -u cqd");
		return;
	}
	doc_text(f, "cqd %.40s answers, up %s%s", pong->pong->version,
		 ctl_time(pong->pong->uptime_us, up),
		 pong->pong->draining ? ", draining" : "");
	if (strcmp(pong->pong->version, CQ_VERSION))
		doc_remedy(f, DOC_WARNING, "cqctl is " CQ_VERSION ": systemctl restart cqd, which "
			   "keeps all pages");
	else if (pong->pong->draining)
		doc_remedy(f, DOC_WARNING, "it admits no new session: cqctl drain --undo");
	cqp_free(pong);
}

/* Memory of GPUs, as cqd sees it; those whose memory a process has name that. */
static void look_at_pools(struct doc_finding *f, const Cqp__StatusOk *st)
{
	const Cqp__Pool *p;
	size_t i, n = 0;

	for (i = 1; i < st->n_pools && n < sizeof(f->text); i++) {
		p = st->pools[i];
		n += (size_t)snprintf(f->text + n, sizeof(f->text) - n, "%s%.63s %.31s%s%.100s",
				      i > 1 ? ", " : "", p->name, p->backend,
				      p->why ? ": " : "", p->why ? p->why : "");
		if (p->why && !strcmp(p->backend, "cuda-ipc"))
			doc_remedy(f, DOC_PROBLEM, "systemctl enable --now cq-holder@%.63s; "
				   "journalctl -u cq-holder@%.63s", p->name, p->name);
		else if (p->why)
			doc_remedy(f, DOC_PROBLEM, "see cqd.conf(5), sections gpu NAME");
	}
	if (!n)
		doc_text(f, "no [gpu NAME] in cqd.conf: pages are in host memory");
}

static void check_pools(struct ctl *c, struct doc_finding *f)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Status body = CQP__STATUS__INIT;
	int ret;

	msg.body_case = CQP__MSG__BODY_STATUS;
	msg.status = &body;
	reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_STATUS_OK, &ret);
	if (!reply) {
		doc_text(f, "unknown: cqd tells only who may open its admin socket");
		return;
	}
	look_at_pools(f, reply->status_ok);
	cqp_free(reply);
}

static const struct doc_check checks[] = {
	{ "group", check_group },
	{ "config", check_config },
	{ "socket", check_socket },
	{ "admin", check_admin },
	{ "daemon", check_daemon },
	{ "GPU memory", check_pools },
	{ NULL, NULL },
};

/* --- report --- */

static const char *const levels[] = { "ok", "warning", "problem" };

static void show(const struct doc_check *ch, const struct doc_finding *f, json_t *list)
{
	json_t *o;

	if (!list) {
		printf("%-8s %-11s ", levels[f->level], ch->name);
		ctl_put_text(stdout, f->text);
		putchar('\n');
		if (f->remedy[0])
			printf("%-20s -> %s\n", "", f->remedy);
		return;
	}
	o = json_pack("{s:s, s:s, s:o}", "check", ch->name, "level", levels[f->level],
		      "text", ctl_json_text(f->text));
	if (f->remedy[0])
		json_object_set_new(o, "remedy", ctl_json_text(f->remedy));
	json_array_append_new(list, o);
}

int ctl_cmd_doctor(struct ctl *c, int argc, char **argv)
{
	const struct doc_check *const tables[] = { doc_host_checks, checks };
	unsigned int count[ARRAY_SIZE(levels)] = { 0 };
	const struct doc_check *ch;
	struct doc_finding f;
	json_t *list;
	size_t i;
	int ret = ctl_parse(c, argc, argv, NULL, NULL, 0, 0);

	if (ret != CTL_GO_ON)
		return ret;
	list = c->json ? json_array() : NULL;
	for (i = 0; i < ARRAY_SIZE(tables); i++) {
		for (ch = tables[i]; ch->name; ch++) {
			memset(&f, 0, sizeof(f));
			ch->run(c, &f);
			count[f.level]++;
			show(ch, &f, list);
		}
	}
	if (c->json)
		ret = ctl_print_json(json_pack("{s:o, s:i, s:i}", "checks", list, "warnings",
					       (int)count[DOC_WARNING], "problems",
					       (int)count[DOC_PROBLEM]));
	else
		ret = printf("%u problems, %u warnings\n", count[DOC_PROBLEM],
			     count[DOC_WARNING]) < 0 ? CTL_FAILED : CTL_OK;
	return !ret && count[DOC_PROBLEM] ? CTL_FAILED : ret;
}
