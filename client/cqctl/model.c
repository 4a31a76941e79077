// SPDX-License-Identifier: MIT
/* load, unload: models of the daemon. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "client/cqctl/cqctl.h"

static int open_model(struct ctl *c, const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), ret;

	if (fd < 0) {
		ret = -errno;
		cq_err_set(&c->err, ret, "cannot open %s: %s", path, strerror(-ret));
		return ret;
	}
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return cq_err_set(&c->err, -EINVAL, "%s is not a regular file", path);
	}
	return fd;
}

int ctl_cmd_load(struct ctl *c, int argc, char **argv)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Load load = CQP__LOAD__INIT;
	const char *pos[2];
	char name[CQP_MAX_NAME], hash[65];
	int fd, ret = ctl_parse(c, argc, argv, NULL, pos, 2, 2);

	if (ret != CTL_GO_ON)
		return ret;
	if ((size_t)snprintf(name, sizeof(name), "%s", pos[0]) >= sizeof(name))
		return ctl_usage(c, "the name has more than %d bytes", CQP_MAX_NAME - 1);
	fd = open_model(c, pos[1]);
	if (fd < 0)
		return ctl_fail(c, fd, "%s", c->err.text);
	load.name = name;
	msg.body_case = CQP__MSG__BODY_LOAD;
	msg.load = &load;
	ret = ctl_connect(c);
	if (ret) {
		close(fd);
		return ctl_fail(c, ret, "%s", c->err.text);
	}
	reply = ctl_call(c, &msg, fd, CQP__MSG__BODY_LOAD_OK, &ret);
	close(fd);
	if (!reply)	/* cqd has no name of the file */
		return ctl_fail(c, ret, "%s: %s", pos[1], c->err.text);
	ctl_hex(reply->load_ok->hash.data, reply->load_ok->hash.len, hash);
	if (c->json)
		ret = ctl_print_json(json_pack("{s:s, s:s, s:b}", "name", name, "hash",
					       hash, "existing",
					       (int)reply->load_ok->existing));
	else
		printf("%s %s, hash %.16s\n", name, reply->load_ok->existing ?
		       "was loaded already" : "loaded", hash);
	cqp_free(reply);
	return ret;
}

int ctl_cmd_unload(struct ctl *c, int argc, char **argv)
{
	Cqp__Msg msg = CQP__MSG__INIT, *reply;
	Cqp__Unload unload = CQP__UNLOAD__INIT;
	const char *pos[1];
	char name[CQP_MAX_NAME];
	int ret = ctl_parse(c, argc, argv, NULL, pos, 1, 1);

	if (ret != CTL_GO_ON)
		return ret;
	if ((size_t)snprintf(name, sizeof(name), "%s", pos[0]) >= sizeof(name))
		return ctl_usage(c, "the name has more than %d bytes", CQP_MAX_NAME - 1);
	unload.name = name;
	msg.body_case = CQP__MSG__BODY_UNLOAD;
	msg.unload = &unload;
	reply = ctl_call(c, &msg, -1, CQP__MSG__BODY_OK, &ret);
	if (!reply)
		return ctl_fail(c, ret, "%s", c->err.text);
	cqp_free(reply);
	if (c->json)
		return ctl_print_json(json_pack("{s:s}", "unloaded", name));
	printf("%s unloaded\n", name);
	return CTL_OK;
}
