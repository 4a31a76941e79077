// SPDX-License-Identifier: MIT
/*
 * The fake driver's knobs, failures on demand, and the text of results.
 */
#include <cstdio>
#include <cstdlib>
#include <strings.h>
#include <unistd.h>

#include "tests/emu/fake.hpp"

namespace fake {

struct knobs knobs;

/* A failure that was asked for: "cuMemCreate:3", "cuMemCreate:3+:2" */
struct failure {
	std::string call;
	unsigned long nth;
	bool later;
	int result;
	std::atomic<unsigned long> calls;
};
static auto &failures = *new std::deque<struct failure>;

uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15u;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static unsigned long long number(const char *name, unsigned long long otherwise)
{
	const char *text = getenv(name);
	char *end;
	unsigned long long n;

	if (!text || !*text)
		return otherwise;
	n = strtoull(text, &end, 0);
	if (*end) {
		fprintf(stderr, "fake driver: %s=%s is no number\n", name, text);
		return otherwise;
	}
	return n;
}

static int usual_failure(const std::string &call)
{
	if (!call.compare(0, 5, "cuMem") || !call.compare(0, 8, "cuModule"))
		return CQCU_ERROR_OUT_OF_MEMORY;
	if (call == "cuLaunchKernel")
		return CQCU_ERROR_LAUNCH_OUT_OF_RESOURCES;
	if (!call.compare(0, 5, "cuIpc"))
		return CQCU_ERROR_MAP_FAILED;
	return CQCU_ERROR_UNKNOWN;
}

static void read_failures(const char *text)
{
	failures.clear();
	while (text && *text) {
		std::string one(text, strcspn(text, ","));
		size_t colon = one.find(':');
		struct failure *f;
		char *end;

		text += one.size() + (text[one.size()] == ',');
		if (colon == std::string::npos) {
			fprintf(stderr, "fake driver: CQ_EMU_FAIL: \"%s\"?\n", one.c_str());
			continue;
		}
		f = &failures.emplace_back();
		f->call = one.substr(0, colon);
		f->nth = strtoul(one.c_str() + colon + 1, &end, 10);
		f->later = *end == '+';
		end += f->later;
		f->result = *end == ':' ? (int)strtol(end + 1, nullptr, 10) :
			    usual_failure(f->call);
	}
}

int inject(size_t, const char *name)
{
	int result = CQCU_SUCCESS;

	for (struct failure &f : failures) {
		unsigned long n;

		if (f.call != name)
			continue;
		n = ++f.calls;
		if (n == f.nth || (f.later && n > f.nth))
			result = f.result;
	}
	while (result < 0)
		pause();
	return result;
}

void device_uuid(int dev, struct cqcu_uuid *uuid)
{
	static const unsigned char like[16] = { 0xc9, 0xe0, 0x00, 0x00, 'f', 'a', 'k', 'e',
						0x80, 0x00, 'd', 'e', 'v', 'i', 'c', 0 };

	memcpy(uuid->bytes, like, sizeof(like));
	uuid->bytes[15] = (unsigned char)dev;
}

/* A token of CUDA_VISIBLE_DEVICES: an index, or the beginning of a UUID. */
static int visible_device(const std::string &token)
{
	char *end;
	long n;

	if (!strncasecmp(token.c_str(), "GPU-", 4)) {
		for (int dev = 0; dev < knobs.devices; dev++) {
			struct cqcu_uuid u;
			char text[48], *p = text;

			device_uuid(dev, &u);
			p += snprintf(p, 8, "GPU-");
			for (int i = 0; i < 16; i++)
				p += snprintf(p, 4, "%s%02x",
					      i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
					      u.bytes[i]);
			if (!strncasecmp(text, token.c_str(), token.size()))
				return dev;
		}
		return -1;
	}
	n = strtol(token.c_str(), &end, 10);
	return *end || token.empty() || n < 0 || n >= knobs.devices ? -1 : (int)n;
}

static void read_visible()
{
	const char *text = getenv("CUDA_VISIBLE_DEVICES");

	knobs.num_visible = 0;
	if (!text) {
		for (int i = 0; i < knobs.devices; i++)
			knobs.visible[knobs.num_visible++] = i;
		return;
	}
	/* the first that is wrong ends the list, as with a real driver */
	while (*text && knobs.num_visible < MAX_DEVICES) {
		std::string one(text, strcspn(text, ","));
		int dev = visible_device(one);

		if (dev < 0)
			return;
		knobs.visible[knobs.num_visible++] = dev;
		text += one.size() + (text[one.size()] == ',');
	}
}

/*
 * Part of the names of files, and of IPC handles, which are short: what is long
 * or has signs of its own is replaced by a hash. A process alone has a name
 * that no other has.
 */
static std::string state_name(const char *name)
{
	uint64_t hash = 0xcbf29ce484222325u;
	char text[32];

	if (!name || !*name) {
		snprintf(text, sizeof(text), "pid%d", getpid());
		return text;
	}
	if (strlen(name) <= 16 && !strpbrk(name, "/."))
		return name;
	for (; *name; name++)
		hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
	snprintf(text, sizeof(text), "%016llx", (unsigned long long)hash);
	return text;
}

int shared_of_block()
{
	switch (knobs.arch) {
	case 80:
		return 163 << 10;
	case 86:
	case 89:
	case 120:
		return 99 << 10;
	default:
		return 227 << 10;
	}
}

void knobs_read()
{
	const char *order = getenv("CQ_EMU_ORDER"), *state = getenv("CQ_EMU_STATE");
	const char *kernels = getenv("CQ_EMU_KERNELS");

	knobs.devices = (int)std::min<unsigned long long>(number("CQ_EMU_DEVICES", 1), MAX_DEVICES);
	knobs.version = (int)number("CQ_EMU_VERSION", 13000);
	knobs.memory = (size_t)std::min<unsigned long long>(number("CQ_EMU_MEMORY", 4ull << 30),
							    MAX_SIZE);
	knobs.threads = (unsigned int)number("CQ_EMU_THREADS", 2);
	knobs.arch = (unsigned int)number("CQ_EMU_ARCH", 90);
	knobs.delay_us = (unsigned int)std::min<unsigned long long>(number("CQ_EMU_DELAY_US", 0),
								    1000000);
	knobs.seed = number("CQ_EMU_SEED", 1);
	knobs.fd_poll = number("CQ_EMU_FD_POLL", 0) != 0;
	knobs.garbage = number("CQ_EMU_GARBAGE", 0) != 0;
	knobs.order = !order || !strcmp(order, "forward") ? 0 : !strcmp(order, "reverse") ? 1 : 2;
	knobs.state = state_name(state);
	knobs.kernels = kernels ? kernels : "";
	read_visible();
	read_failures(getenv("CQ_EMU_FAIL"));
}

const char *result_text(int result)
{
	switch (result) {
	case CQCU_SUCCESS: return "CUDA_SUCCESS";
#define NAME(name, value) case value: return "CUDA_" #name;
	CQCU_RESULTS(NAME)
#undef NAME
	default: return nullptr;
	}
}

namespace calls {

int cuGetErrorName(int result, const char **text)
{
	if (!text)
		return CQCU_ERROR_INVALID_VALUE;
	*text = result_text(result);
	return *text ? CQCU_SUCCESS : CQCU_ERROR_INVALID_VALUE;
}

int cuGetErrorString(int result, const char **text)
{
	if (!text)
		return CQCU_ERROR_INVALID_VALUE;
	switch (result) {
	case CQCU_SUCCESS: *text = "no error"; break;
	case CQCU_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
	case CQCU_ERROR_OUT_OF_MEMORY: *text = "out of memory"; break;
	case CQCU_ERROR_ILLEGAL_ADDRESS:
		*text = "an illegal memory access was encountered";
		break;
	default: *text = result_text(result); break;
	}
	return *text ? CQCU_SUCCESS : CQCU_ERROR_INVALID_VALUE;
}

} /* namespace calls */
} /* namespace fake */
