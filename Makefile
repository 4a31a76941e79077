# SPDX-License-Identifier: MIT
#
# cq - one Makefile, no recursion: each directory says what it is made of in
# its own Build file, in kbuild words:
#
#	cqd-y			+= server.o	always part of cqd
#	cqk-$(CONFIG_X86_64)	+= x86/foo.o	only on x86-64
#	CFLAGS_foo_avx512.o	:= -mavx512f	extra flags for one object
#	cuda-y			+= foo.cu	kernels for GPUs
#	cubase-y		+= foo.cu	kernels that gpu-bench compares with
#	emu-y			+= cuemu.o	part of their emulation (C++)
#	fake-y			+= fake.o	part of the fake CUDA driver (C++)
#	tests-y			+= test_foo	test program from test_foo.c
#	gpu-y			+= gpu_foo	program of make gpu-check from gpu_foo.c
#	bench-y			+= bench_foo	bench program from bench_foo.c
#	chaos-y			+= worker.o	part of the driver of the chaos run
#	fuzz-y			+= fuzz_foo	fuzzer from fuzz_foo.c
#	FUZZ_AIM_fuzz_foo	:= proto/foo.c	the file it must cover
#	LIBS_test_foo		:= -lfoo	extra libraries for one program
#
# "make help" lists targets and knobs.

VERSION := 0.1.0
SOMAJOR := 0

.SUFFIXES:
.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += -rR --no-print-directory
.DEFAULT_GOAL := all

O	?= build
# make has no quoting for these; "clean" would remove something else
ifneq ($(words $(subst :, ,$(CURDIR)/$(O))),1)
$(error "$(CURDIR)", O="$(O)": no spaces and no colons, please)
endif
# make has a CC of its own ("cc"), so ?= would never apply
ifneq ($(filter default undefined,$(origin CC)),)
CC	:= gcc
endif
ifneq ($(filter default undefined,$(origin AR)),)
AR	:= ar
endif
ifneq ($(filter default undefined,$(origin CXX)),)
CXX	:= $(if $(findstring clang,$(CC)),clang++,g++)
endif
PKG_CONFIG ?= pkg-config
PROTOC_C ?= protoc-c
SPARSE	?= sparse
OBJCOPY	?= objcopy

# Goals that must work before a compiler is installed read no probes: they
# install first and then call make again for the real work.
early := deps clean help demo check check-neon bench eval yardstick chaos chaos-short ci
ifneq ($(filter-out $(early),$(or $(MAKECMDGOALS),all)),)
include scripts/Makefile.build
include scripts/Makefile.check
include scripts/Makefile.install
endif
include scripts/Makefile.targets
