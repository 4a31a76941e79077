// SPDX-License-Identifier: MIT
/*
 * cqd - owner of the memory of shared key/value caches.
 *
 * Order at start: options, configuration, sockets (as root, if started so),
 * then the last privilege goes, then the store, which must create its memory
 * under cqd's own uid. cqd.8 is the manual.
 */
#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>
#include "cq/log.h"
#include "cq/stdfds.h"
#include "daemon/http.h"
#include "daemon/msgid.h"
#include "daemon/server.h"

#define FDNAME_TENANTS	"cqd"
#define FDNAME_ADMIN	"cqd-admin"
#define FDNAME_METRICS	"cqd-metrics"
#define FDS_PER_CONN	74	/* socket, pidfd, 64 arenas, 8 in replies that wait */
#define FDS_OTHER	10240	/* 2 per segment, namespace, model; listeners */

struct options {
	const char *config, *socket, *admin_socket, *user;
	bool check;
};

/*
 * struct daemon - the process
 * @fds, @names, @n_fds: what the service manager handed over
 * @persist: persist= was started, if it is on
 */
struct daemon {
	uv_loop_t loop;
	struct cqd_server srv;
	struct cqd_notify *notify;
	struct cqd_pressure *pressure;
	uv_signal_t sigs[3];
	char **names;
	unsigned int n_fds;
	bool sigs_live, persist;
};

static struct daemon the_daemon;	/* large: not on the stack */

static struct daemon *daemon_of(struct cqd_server *srv)
{
	return container_of(srv, struct daemon, srv);
}

/* --- options --- */

static void usage(void)
{
	puts("Usage: cqd [OPTION...]\n"
	     "Own and share the memory of coupled-quantised key/value caches.\n"
	     "\n"
	     "  -c, --config FILE        configuration (default " CQD_DEFAULT_CONFIG ")\n"
	     "      --check-config       check it and exit\n"
	     "  -s, --socket PATH        socket of the workers\n"
	     "  -a, --admin-socket PATH  socket of cqctl\n"
	     "  -u, --user NAME          run as this user (after binding the sockets)\n"
	     "      --foreground         accepted; cqd never does anything else\n"
	     "  -h, --help               this text\n"
	     "      --version            version\n"
	     "\n"
	     "Manual: cqd(8), cqd.conf(5).");
}

/* Exit status of what is answered at once, or -1 to go on. */
static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "check-config", no_argument, NULL, 'C' },
		{ "socket", required_argument, NULL, 's' },
		{ "admin-socket", required_argument, NULL, 'a' },
		{ "user", required_argument, NULL, 'u' },
		{ "foreground", no_argument, NULL, 'f' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "c:s:a:u:h", longs, NULL)) >= 0) {
		switch (c) {
		case 'c':
			o->config = optarg;
			break;
		case 'C':
			o->check = true;
			break;
		case 's':
			o->socket = optarg;
			break;
		case 'a':
			o->admin_socket = optarg;
			break;
		case 'u':
			o->user = optarg;
			break;
		case 'f':
			break;
		case 'h':
			usage();
			return EXIT_SUCCESS;
		case 'V':
			puts("cqd " CQ_VERSION);
			return EXIT_SUCCESS;
		default:
			return EX_USAGE;
		}
	}
	if (optind < argc) {
		cq_err("unexpected argument \"%s\"; see cqd --help", argv[optind]);
		return EX_USAGE;
	}
	return -1;
}

/* --- before the loop --- */

static int load_config(struct cqd_server *srv, const struct options *o)
{
	struct cq_err err = { "" };
	int ret;

	srv->config_path = o->config;
	if (!o->config && access(CQD_DEFAULT_CONFIG, F_OK) == 0)
		srv->config_path = CQD_DEFAULT_CONFIG;
	ret = cqd_config_load(srv->config_path, &srv->config, &err);
	/* Asked for by a person: no priority before it, whatever it is piped to. */
	if (ret && o->check)
		fprintf(stderr, "cqd: %s\n", err.text);
	else if (ret)
		cq_err("%s", err.text);
	return ret;
}

/* Each client costs descriptors, and what the store holds counts as well. */
static void raise_nofile(const struct cqd_config *cfg)
{
	uint64_t want = (uint64_t)cfg->max_connections * FDS_PER_CONN + FDS_OTHER;
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return;
	if (rl.rlim_cur < rl.rlim_max) {
		rl.rlim_cur = rl.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &rl) < 0)
			cq_warn("cannot raise the limit of open files: %s", strerror(errno));
	}
	if (rl.rlim_max < want)
		cq_info("%llu open files allowed, %u connections may need %llu: raise "
			"LimitNOFILE= or lower max_connections",
			(unsigned long long)rl.rlim_max, cfg->max_connections,
			(unsigned long long)want);
}

static void server_init(struct daemon *d)
{
	struct cqd_server *srv = &d->srv;
	struct timespec now;
	unsigned int i;

	uv_loop_init(&d->loop);
	srv->loop = &d->loop;
	srv->started_us = cqd_clock_us();
	clock_gettime(CLOCK_REALTIME, &now);
	srv->born_us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
	list_init(&srv->tenants);
	list_init(&srv->listeners);
	list_init(&srv->conns);
	list_init(&srv->waiting);
	list_init(&srv->sessions);
	for (i = 0; i < CQD_HASH; i++)
		list_init(&srv->uids[i]);
	cqd_processes_init(srv);
	list_init(&srv->http.listeners);
	list_init(&srv->http.conns);
	uv_timer_init(srv->loop, &srv->tick);
	uv_timer_init(srv->loop, &srv->http.tick);
	srv->http.tick.data = srv;
	cqd_events_init(srv);
	cqd_meter_start(srv);
}

static int take_socket(struct cqd_server *srv, int fd, const char *name, bool *tenants,
		       bool *admin)
{
	struct cq_err err = { "" };
	bool is_admin = !strcmp(name, FDNAME_ADMIN) ||
			sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, srv->config->admin_socket, 0) > 0;
	int ret = cqd_listen_fd(srv, fd, is_admin, &err);

	if (ret)
		cq_err("%s", err.text);
	else
		*(is_admin ? admin : tenants) = true;
	return ret;
}

static int take_metrics(struct cqd_server *srv, int fd)
{
	struct cq_err err = { "" };
	int ret = cqd_http_bind_fd(srv, fd, &err);

	if (ret)
		cq_err("%s", err.text);
	return ret;
}

/* Sockets by their names or by being such; the rest is the store's. */
static int take_fds(struct daemon *d, int *store_fds, char **store_names,
		    unsigned int *n_store, bool *tenants, bool *admin)
{
	const char *name;
	unsigned int i;
	int fd, ret;

	for (i = 0; i < d->n_fds; i++) {
		fd = SD_LISTEN_FDS_START + (int)i;
		name = d->names[i];
		if (!strcmp(name, FDNAME_METRICS)) {
			ret = take_metrics(&d->srv, fd);
			if (ret)
				return ret;
			continue;
		}
		if (strcmp(name, FDNAME_ADMIN) && strcmp(name, FDNAME_TENANTS) &&
		    sd_is_socket(fd, AF_UNIX, SOCK_SEQPACKET, 1) <= 0) {
			store_fds[*n_store] = fd;
			store_names[(*n_store)++] = d->names[i];
			continue;
		}
		ret = take_socket(&d->srv, fd, name, tenants, admin);
		if (ret)
			return ret;
	}
	return 0;
}

static int bind_one(struct cqd_server *srv, const char *path, bool admin)
{
	struct cq_err err = { "" };
	int ret = cqd_listen(srv, path, admin ? 0600 : srv->config->socket_mode, admin, &err);

	if (ret)
		cq_err("%s", err.text);
	return ret;
}

/* Is a socket of that path there already, from the service manager? */
static bool listening(struct cqd_server *srv, const char *path)
{
	struct list_head *pos;

	list_for_each(pos, &srv->listeners)
		if (!strcmp(list_entry(pos, struct cqd_listener, node)->path, path))
			return true;
	return false;
}

static int bind_metrics(struct cqd_server *srv)
{
	const struct cqd_config *cfg = srv->config;
	struct cq_err err = { "" };
	int ret = 0;

	if (cfg->metrics_socket)
		ret = cqd_http_bind(srv, cfg->metrics_socket, &err);
	if (!ret && cfg->metrics_listen)
		ret = cqd_http_bind_tcp(srv, cfg->metrics_listen, &err);
	if (ret)
		cq_err("%s", err.text);
	return ret;
}

static int bind_rest(struct cqd_server *srv, const struct options *o, bool tenants,
		     bool admin)
{
	const struct cqd_config *cfg = srv->config;
	unsigned int i;
	int ret = 0;

	if (!tenants)
		ret = bind_one(srv, o->socket ? o->socket : cfg->socket, false);
	if (!ret && !admin)
		ret = bind_one(srv, o->admin_socket ? o->admin_socket : cfg->admin_socket,
			       true);
	/* One tenant without its socket is no reason to leave the others without. */
	for (i = 0; i < cfg->n_ns && !ret; i++)
		if (cfg->ns[i].socket && !listening(srv, cfg->ns[i].socket) &&
		    bind_one(srv, cfg->ns[i].socket, false))
			cq_err("namespace %s cannot be reached: under systemd enable "
			       "cqd-tenant@%s.socket, then restart cqd", cfg->ns[i].name,
			       cfg->ns[i].name);
	return ret ? ret : bind_metrics(srv);
}

static void own_sockets(struct cqd_server *srv, const struct passwd *pw)
{
	struct list_head *pos;
	struct cqd_listener *l;

	list_for_each(pos, &srv->listeners) {
		l = list_entry(pos, struct cqd_listener, node);
		if (l->own && lchown(l->path, pw->pw_uid, pw->pw_gid) < 0)
			cq_warn("cannot give %s to %s: %s", l->path, pw->pw_name,
				strerror(errno));
	}
}

static int drop_privileges(struct cqd_server *srv, const char *user)
{
	const struct passwd *pw;

	if (!user) {
		if (geteuid() == 0)
			cq_warn("running as root: no other uid can then be kept from the "
				"memory by its owner alone; use --user or cqd.service");
		return 0;
	}
	/* cppcheck-suppress getpwnamCalled ; there is one thread yet */
	pw = getpwnam(user);
	if (!pw) {
		cq_err("--user %s: no such user", user);
		return -ENOENT;
	}
	if (geteuid() == pw->pw_uid)
		return 0;
	own_sockets(srv, pw);
	if (initgroups(user, pw->pw_gid) < 0 || setgid(pw->pw_gid) < 0 ||
	    setuid(pw->pw_uid) < 0) {
		cq_err("--user %s: %s; start cqd as root or as that user", user,
		       strerror(errno));
		return -EPERM;
	}
	return 0;
}

/* What segments are made of is said once. */
static int probe_memory(struct cqd_store_opts *opts, struct cq_err *err)
{
	const struct cqd_mem_ops *ops = cqd_mem_find(opts->backend);
	char text[160];
	int ret;

	if (!ops)
		return 0;	/* the store says what is wrong */
	ret = cqd_mem_probe(ops, &opts->policy, text, sizeof(text), err);
	if (!ret)
		cq_info("segments: %s", text);
	return ret;
}

/* Backends in the order of enum cqd_sharing. */
static void gpu_opts(const struct cqd_config *cfg, struct cqd_pool_opts out[CQD_MAX_GPUS])
{
	static const char *const backends[] = { "cuda-vmm", "cuda-ipc" };
	unsigned int i;

	for (i = 0; i < cfg->n_gpus; i++)
		out[i] = (struct cqd_pool_opts){
			.name = cfg->gpu[i].name,
			.uuid = cfg->gpu[i].uuid,
			.backend = backends[cfg->gpu[i].sharing],
			.holder = cfg->gpu[i].holder,
			.bytes = cfg->gpu[i].pool_bytes.percent ? 0 :
				 cfg->gpu[i].pool_bytes.bytes,
			.percent = cfg->gpu[i].pool_bytes.percent,
			.trust_readers = cfg->gpu[i].trust_readers,
		};
}

/* What each device gives, or why it gives nothing. */
static void say_pools(const struct cqd_store *st, const struct cqd_config *cfg)
{
	struct cqd_pool_figures f;
	uint32_t i;

	for (i = 1; cqd_pool_figures(st, i, &f); i++) {
		if (f.why[0])
			cq_err("[gpu %s] cannot be used, the rest is served: %s", f.name, f.why);
		else
			cq_info("[gpu %s] %s, %s: %llu MiB for pages", f.name, f.uuid, f.backend,
				(unsigned long long)(f.limit >> 20));
		if (!f.why[0] && !f.node[0])
			cq_log(LOG_DEBUG, "[gpu %s] no device node is kept open", f.name);
	}
	if (i > 1 && cfg->persist)
		cq_info("persist: pages in the memory of GPUs are not kept, cqd cannot read them");
}

static int open_store(struct cqd_server *srv, const int *fds, char *const *names,
		      unsigned int n_fds)
{
	struct cqd_pool_opts gpus[CQD_MAX_GPUS];
	const struct cqd_config *cfg = srv->config;
	struct cqd_store_opts opts = {
		.pool_bytes = cfg->pool_bytes.bytes,
		.max_pages = cfg->max_pages,
		.max_clients = cfg->max_clients,
		.max_pins = cfg->max_pins,
		.segment_min = cfg->segment_min,
		.segment_max = cfg->segment_max,
		.low = cfg->low,
		.high = cfg->high,
		.half_life_s = cfg->half_life_s,
		.verify_rate = cfg->verify_rate,
		.backend = cfg->backend,
		.policy = cfg->policy,
		.pools = gpus,
		.n_pools = cfg->n_gpus,
		.fds = fds,
		.names = names,
		.n_fds = n_fds,
		.push_fds = getenv("NOTIFY_SOCKET") != NULL,
	};
	struct cq_err err = { "" };
	int ret = probe_memory(&opts, &err);

	gpu_opts(cfg, gpus);
	if (!ret)
		ret = cqd_store_new(srv->loop, &opts, &srv->store, &err);

	/* What could not be taken over from the cqd before, in one line. */
	if (!ret && err.text[0]) {
		cq_log_field("MESSAGE_ID", "%s", CQD_MSG_NOT_TAKEN_OVER);
		cq_info("%s", err.text);
	}
	if (!ret)
		say_pools(srv->store, cfg);
	if (!ret && opts.push_fds && !n_fds)
		cq_info("the service manager kept nothing: the cache starts empty");
	if (!ret)
		ret = cqd_tenants_apply(srv, cfg, &err);
	if (ret)
		cq_err("%s", err.text);
	return ret;
}

/* Sockets first, while there may be a privilege to bind them with. */
static int open_all(struct daemon *d, const struct options *o)
{
	bool tenants = false, admin = false;
	unsigned int n_store = 0;
	char **names = NULL;
	int *fds, ret = -ENOMEM;

	fds = calloc(d->n_fds + 1, sizeof(*fds));
	names = calloc(d->n_fds + 1, sizeof(*names));
	if (!fds || !names) {
		cq_err("out of memory");
		goto out;
	}
	ret = take_fds(d, fds, names, &n_store, &tenants, &admin);
	if (!ret)
		ret = bind_rest(&d->srv, o, tenants, admin);
	if (!ret)
		ret = drop_privileges(&d->srv, o->user);
	if (!ret)
		ret = open_store(&d->srv, fds, names, n_store);
out:
	free(names);
	free(fds);
	return ret;
}

/* --- signals --- */

/* Once the models are there that pages are of. */
static void start_persist(struct cqd_server *srv)
{
	const struct cqd_config *cfg = srv->config;
	struct cq_err err = { "" };
	struct daemon *d = daemon_of(srv);

	if (!d->persist && cfg->persist &&
	    cqd_persist_start(srv->store, cfg->persist, cfg->persist_rate, &err))
		cq_err("%s", err.text);
	d->persist = true;	/* not at a reload */
}

static void on_loaded(struct cqd_server *srv)
{
	if (srv->stopping)
		return;
	cqd_notify_ready(daemon_of(srv)->notify);
	start_persist(srv);
}

static void reload(struct daemon *d)
{
	struct cqd_server *srv = &d->srv;
	struct cqd_config *new, *old = srv->config;
	struct cq_err err = { "" };
	const char *fixed;

	cqd_notify_reloading(d->notify);
	if (cqd_config_load(srv->config_path, &new, &err)) {
		cq_log_field("MESSAGE_ID", "%s", CQD_MSG_CONFIG_REFUSED);
		cq_log_field("CQ_PATH", "%s", srv->config_path ? srv->config_path : "");
		cq_err("%s; the configuration in force stays", err.text);
		on_loaded(srv);
		return;
	}
	fixed = cqd_config_fixed(old, new);
	if (fixed)
		cq_warn("%s: %s changed; that takes effect when cqd is restarted",
			srv->config_path, fixed);
	cqd_config_pool(new, old->pool_bytes.bytes);
	if (cqd_tenants_apply(srv, new, &err))
		cq_err("%s: %s", srv->config_path, err.text);
	srv->config = new;
	cqd_config_free(old);
	cq_info("configuration reloaded");
	cqd_events_tell(srv, CQD_NOTICE_RELOADED);
	cqd_models_load(srv, new, on_loaded);
}

static void on_store_closed(void *arg)
{
}

static void on_flushed(void *arg)
{
	struct cqd_server *srv = arg;

	cqd_store_close(srv->store, on_store_closed, NULL);
	srv->store = NULL;
}

/* Handles close now, the loop ends when the store has nothing under way. */
static void stop(struct daemon *d)
{
	struct cqd_server *srv = &d->srv;
	unsigned int i;

	if (srv->stopping)
		return;
	srv->stopping = true;
	cqd_notify_stopping(d->notify);
	cqd_conn_close_all(srv);
	cqd_sessions_close_all(srv);
	cqd_listen_close_all(srv);
	cqd_http_close(srv);
	cqd_events_close(srv);
	cqd_meter_close(srv);
	cqd_notify_close(d->notify);
	d->notify = NULL;
	cqd_pressure_close(d->pressure);
	d->pressure = NULL;
	for (i = 0; i < ARRAY_SIZE(d->sigs) && d->sigs_live; i++)
		uv_close((uv_handle_t *)&d->sigs[i], NULL);
	uv_close((uv_handle_t *)&srv->tick, NULL);
	cqd_processes_close(srv);
	if (srv->store)
		cqd_persist_flush(srv->store, on_flushed, srv);
}

static void on_signal(uv_signal_t *sig, int signum)
{
	struct daemon *d = sig->data;

	if (signum == SIGHUP)
		reload(d);
	else
		stop(d);
}

static void watch_signals(struct daemon *d)
{
	static const int nums[] = { SIGTERM, SIGINT, SIGHUP };
	unsigned int i;

	signal(SIGPIPE, SIG_IGN);
	for (i = 0; i < ARRAY_SIZE(nums); i++) {
		uv_signal_init(&d->loop, &d->sigs[i]);
		d->sigs[i].data = d;
		uv_signal_start(&d->sigs[i], on_signal, nums[i]);
	}
	d->sigs_live = true;
}

static int serve(struct daemon *d)
{
	struct cqd_server *srv = &d->srv;
	struct cqd_stats st;

	cqd_sessions_adopt(srv);
	d->notify = cqd_notify_new(srv);
	if (!d->notify) {
		cq_err("out of memory");
		return -ENOMEM;
	}
	watch_signals(d);
	d->pressure = cqd_pressure_new(srv, srv->config->pressure_us);
	cqd_store_stats(srv->store, &st);
	cq_log_field("MESSAGE_ID", "%s", CQD_MSG_SERVING);
	cq_info("cqd " CQ_VERSION " serves; namespaces: %u, pool: %llu MiB, pages kept: %llu",
		srv->config->n_ns,
		(unsigned long long)(srv->config->pool_bytes.bytes >> 20),
		(unsigned long long)st.pages_sealed);
	cqd_models_load(srv, srv->config, on_loaded);
	uv_run(srv->loop, UV_RUN_DEFAULT);
	return 0;
}

static void cleanup(struct daemon *d)
{
	unsigned int i;

	stop(d);
	uv_run(&d->loop, UV_RUN_DEFAULT);
	if (uv_loop_close(&d->loop))
		cq_warn("handles left open at exit");
	cqd_tenants_free(&d->srv);
	cqd_config_free(d->srv.config);
	for (i = 0; i < d->n_fds; i++)
		free(d->names[i]);
	free(d->names);
}

int main(int argc, char **argv)
{
	struct daemon *d = &the_daemon;
	struct options o = { 0 };
	int n, ret;

	cq_stdfds_hold();
	ret = parse_options(argc, argv, &o);
	if (ret >= 0)
		return ret;
	if (load_config(&d->srv, &o) < 0)
		return EX_CONFIG;
	if (o.check) {
		printf("%s: no errors\n", d->srv.config_path ? d->srv.config_path :
		       "built-in configuration");
		cqd_config_free(d->srv.config);
		return EXIT_SUCCESS;
	}
	n = sd_listen_fds_with_names(1, &d->names);
	if (n > 0)
		d->n_fds = (unsigned int)n;
	raise_nofile(d->srv.config);
	server_init(d);
	ret = open_all(d, &o);
	if (!ret)
		ret = serve(d);
	cleanup(d);
	return ret ? EXIT_FAILURE : EXIT_SUCCESS;
}
