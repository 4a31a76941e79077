// SPDX-License-Identifier: MIT
/*
 * What kernels/cuda/driver.c does and says on a machine without a driver. The
 * rest is tested over the fake driver, in tests/emu.
 */
#include <dlfcn.h>
#include "tests/harness.h"
#include "kernels/cuda/driver.h"

static void need_no_driver(void)
{
	if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL))
		SKIP("this machine has an NVIDIA driver");
}

TEST(no_driver_is_an_error_with_a_sentence)
{
	const struct cqk_cuda *cu = (void *)1;
	struct cq_err err;

	need_no_driver();
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(cqk_cuda_get(&cu, &err), -ENODEV);
		ASSERT_STREQ(err.text, "no NVIDIA driver (libcuda.so.1 was not found): "
			      "host memory is used");
	}
	ASSERT(cu == (void *)1);
	ASSERT_EQ(cqk_cuda_get(&cu, NULL), -ENODEV);
}

/* Nothing was started, so a child may look for itself. */
TEST(a_child_may_look_after_its_parent_found_none)
{
	const struct cqk_cuda *cu;
	int status;
	pid_t pid;

	need_no_driver();
	ASSERT_EQ(cqk_cuda_get(&cu, NULL), -ENODEV);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(cqk_cuda_get(&cu, NULL) == -ENODEV ? 0 : 1);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}

TEST(a_malformed_uuid_is_refused_before_a_driver_is_looked_for)
{
	static const char *const bad[] = {
		"", "GPU-", "0", "GPU-01234567-89ab-cdef-0123-456789abcde",
		"GPU-01234567-89ab-cdef-0123-456789abcdef0",
		"GPU-01234567-89ab-cdef-0123-456789abcdeg",
		"GPU-0123456789ab-cdef-0123-456789abcdef-",
		"XPU-01234567-89ab-cdef-0123-456789abcdef",
		"%s%s%s%n", "GPU-\xff\xff\xff\xff",
	};
	struct cq_err err;
	cqcu_device dev = 77;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		memset(&err, 0, sizeof(err));
		ASSERT_EQ(cqk_cuda_find(&dev, bad[i], &err), -EINVAL);
		ASSERT_STRHAS(err.text, "nvidia-smi -L");
	}
	ASSERT_EQ(cqk_cuda_find(&dev, NULL, &err), -EINVAL);
	need_no_driver();
	ASSERT_EQ(cqk_cuda_find(&dev, "GPU-01234567-89ab-cdef-0123-456789ABCDEF", &err), -ENODEV);
	ASSERT_STRHAS(err.text, "no NVIDIA driver");
	ASSERT_EQ(dev, 77);
}

TEST(results_have_errors_and_words)
{
	char text[CQK_CUDA_TEXT];
	struct cq_err err;

	ASSERT_EQ(cqk_cuda_errno(CQCU_SUCCESS), 0);
	ASSERT_EQ(cqk_cuda_errno(CQCU_ERROR_OUT_OF_MEMORY), -ENOMEM);
	ASSERT_EQ(cqk_cuda_errno(CQCU_ERROR_NOT_READY), -EAGAIN);
	ASSERT_EQ(cqk_cuda_errno(CQCU_ERROR_ILLEGAL_ADDRESS), -EFAULT);
	ASSERT_EQ(cqk_cuda_errno(CQCU_ERROR_UNKNOWN), -EIO);
	for (int r = -5; r < 1100; r++) {
		ASSERT((cqk_cuda_errno(r) == 0) == (r == 0));
		cqk_cuda_text(r, text);
		ASSERT(strlen(text) > 5 && strlen(text) < sizeof(text));
		ASSERT(!cqk_cuda_fatal(r) || cqk_cuda_errno(r));
	}
	ASSERT(cqk_cuda_fatal(CQCU_ERROR_ILLEGAL_ADDRESS));
	ASSERT(cqk_cuda_fatal(CQCU_ERROR_LAUNCH_FAILED));
	ASSERT(!cqk_cuda_fatal(CQCU_ERROR_OUT_OF_MEMORY));
	ASSERT(!cqk_cuda_fatal(CQCU_ERROR_NOT_READY));
	ASSERT_EQ(cqk_cuda_fail(&err, CQCU_ERROR_OUT_OF_MEMORY, "cuMemCreate"), -ENOMEM);
	ASSERT_STREQ(err.text, "cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY");
	ASSERT_EQ(cqk_cuda_fail(NULL, 4711, "x"), -EIO);
}
