// SPDX-License-Identifier: MIT
/*
 * kernels/cuda/driver.c over the fake driver.
 */
#include <pthread.h>
#include "tests/harness.h"
#include "tests/emu/fake_rig.h"

TEST(loads_once_for_all_threads)
{
	const struct cqk_cuda *again;
	int n;

	start_driver();
	ASSERT_OK(cqk_cuda_get(&again, NULL));
	ASSERT(again == cu);
	CU(cuDeviceGetCount(&n));
	ASSERT_EQ(n, 1);
}

static void *get_in_thread(void *arg)
{
	const struct cqk_cuda **out = arg;

	return cqk_cuda_get(out, NULL) ? NULL : (void *)out;
}

TEST(many_threads_at_once)
{
	const struct cqk_cuda *got[16] = { NULL };
	pthread_t ids[16];
	void *ok;

	for (int i = 0; i < 16; i++)
		ASSERT_EQ(pthread_create(&ids[i], NULL, get_in_thread, &got[i]), 0);
	for (int i = 0; i < 16; i++) {
		ASSERT_EQ(pthread_join(ids[i], &ok), 0);
		ASSERT(ok && got[i] && got[i] == got[0]);
	}
}

TEST(finds_devices_by_uuid)
{
	char first[CQK_CUDA_UUID], second[CQK_CUDA_UUID], upper[CQK_CUDA_UUID];
	cqcu_device dev = 99;
	struct cq_err err;

	knob("CQ_EMU_DEVICES", "2");
	start_driver();
	ASSERT_OK(cqk_cuda_uuid(0, first, NULL));
	ASSERT_OK(cqk_cuda_uuid(1, second, NULL));
	ASSERT_STREQ(first, "GPU-c9e00000-6661-6b65-8000-646576696300");
	ASSERT_STREQ(second, "GPU-c9e00000-6661-6b65-8000-646576696301");
	ASSERT_OK(cqk_cuda_find(&dev, second, &err));
	ASSERT_EQ(dev, 1);
	for (size_t i = 0; i <= strlen(first); i++)
		upper[i] = (char)(i > 3 && first[i] >= 'a' ? first[i] - 32 : first[i]);
	ASSERT_OK(cqk_cuda_find(&dev, upper, &err));
	ASSERT_EQ(dev, 0);
	dev = 99;
	ASSERT_EQ(cqk_cuda_find(&dev, "GPU-00000000-6661-6b65-8000-646576696301", &err), -ENODEV);
	ASSERT_STRHAS(err.text, first);
	ASSERT_STRHAS(err.text, second);
	ASSERT_EQ(dev, 99);
	ASSERT_EQ(cqk_cuda_uuid(2, first, &err), -ENODEV);
	ASSERT_STRHAS(err.text, "cuDeviceGetUuid");
}

/* Eight names are more than the text of an error holds. */
TEST(an_unknown_uuid_among_many)
{
	struct cq_err err;
	cqcu_device dev;

	knob("CQ_EMU_DEVICES", "8");
	start_driver();
	ASSERT_EQ(cqk_cuda_find(&dev, "GPU-00000000-6661-6b65-8000-646576696301", &err), -ENODEV);
	ASSERT_STRHAS(err.text, "646576696301 here, but GPU-c9e00000");
	ASSERT_STRHAS(err.text, ", ...");
	ASSERT_LT(strlen(err.text), sizeof(err.text) - 1);
}

/* Ordinals are a process's own; UUIDs are not. */
TEST(visible_devices_shift_ordinals)
{
	cqcu_device dev;
	struct cq_err err;

	knob("CQ_EMU_DEVICES", "3");
	knob("CUDA_VISIBLE_DEVICES", "2,GPU-c9e00000-6661-6b65-8000-646576696300");
	start_driver();
	ASSERT_OK(cqk_cuda_find(&dev, "GPU-c9e00000-6661-6b65-8000-646576696302", NULL));
	ASSERT_EQ(dev, 0);
	ASSERT_OK(cqk_cuda_find(&dev, "GPU-c9e00000-6661-6b65-8000-646576696300", NULL));
	ASSERT_EQ(dev, 1);
	ASSERT_EQ(cqk_cuda_find(&dev, "GPU-c9e00000-6661-6b65-8000-646576696301", &err), -ENODEV);
}

TEST(no_gpu)
{
	struct cq_err err;

	knob("CQ_EMU_DEVICES", "0");
	ASSERT_EQ(cqk_cuda_get(&cu, &err), -ENODEV);
	ASSERT_STRHAS(err.text, "finds no GPU");
	ASSERT(!cu);
	/* one that is plugged in later is found */
	knob("CQ_EMU_DEVICES", "1");
	ASSERT_OK(cqk_cuda_get(&cu, NULL));
}

TEST(old_driver)
{
	struct cq_err err;

	knob("CQ_EMU_VERSION", "11080");
	ASSERT_EQ(cqk_cuda_get(&cu, &err), -ENOSYS);
	ASSERT_STREQ(err.text, "the NVIDIA driver is too old: it is for CUDA 11.8, 12.0 or newer "
		     "is needed");
	knob("CQ_EMU_VERSION", "12000");
	ASSERT_OK(cqk_cuda_get(&cu, &err));
}

/* What cuInit() says is in the text, whatever it is. */
TEST(a_driver_that_does_not_start)
{
	static const struct {
		const char *fail, *text;
		int ret;
	} cases[] = {
		{ "cuInit:1:304", "cuInit: CUDA_ERROR_OPERATING_SYSTEM", -EIO },
		{ "cuInit:1:803", "different versions", -ENOSYS },
		{ "cuInit:1:34", "stub", -ENODEV },
		{ "cuInit:1:2", "cuInit: CUDA_ERROR_OUT_OF_MEMORY", -ENOMEM },
		{ "cuInit:1:4711", "cuInit: CUDA error 4711", -EIO },
	};
	struct cq_err err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		knob("CQ_EMU_FAIL", cases[i].fail);
		ASSERT_EQ(cqk_cuda_get(&cu, &err), cases[i].ret);
		ASSERT_STRHAS(err.text, cases[i].text);
		ASSERT(!cu);
	}
	knob("CQ_EMU_FAIL", "");
	ASSERT_OK(cqk_cuda_get(&cu, &err));
}

TEST(a_child_is_refused)
{
	struct cq_err err;
	pid_t pid;
	int n;

	start();
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		const struct cqk_cuda *mine = NULL;

		if (cqk_cuda_get(&mine, &err) != -EOWNERDEAD || mine ||
		    !strstr(err.text, "was forked from one that uses CUDA"))
			_exit(1);
		/* and so does the driver say, if somebody goes on with the table */
		_exit(cu->cuDeviceGetCount(&n) == CQCU_ERROR_NOT_INITIALIZED ? 0 : 2);
	}
	reap(pid);
	CU(cuDeviceGetCount(&n));
}

TEST(texts_of_a_running_driver)
{
	char text[CQK_CUDA_TEXT];
	struct cq_err err;

	start_driver();
	ASSERT_STREQ(cqk_cuda_text(CQCU_ERROR_OUT_OF_MEMORY, text),
		     "out of memory (CUDA_ERROR_OUT_OF_MEMORY)");
	ASSERT_STREQ(cqk_cuda_text(4711, text), "CUDA error 4711");
	ASSERT_EQ(cqk_cuda_fail(&err, CQCU_ERROR_ILLEGAL_ADDRESS, "cuStreamSynchronize"), -EFAULT);
	ASSERT_STREQ(err.text, "cuStreamSynchronize: an illegal memory access was encountered "
		     "(CUDA_ERROR_ILLEGAL_ADDRESS)");
}
