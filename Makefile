# SPDX-License-Identifier: MIT
#
# cq - one Makefile, no recursion: each directory says what it is made of in
# its own Build file, in kbuild words:
#
#	cqd-y			+= server.o	always part of cqd
#	cqk-$(CONFIG_X86_64)	+= x86/foo.o	only on x86-64
#	CFLAGS_foo_avx512.o	:= -mavx512f	extra flags for one object
#	tests-y			+= test_foo	test program from test_foo.c
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
PREFIX	?= /usr/local
LIBDIR	?= $(PREFIX)/lib
BINDIR	?= $(PREFIX)/bin
SBINDIR	?= $(PREFIX)/sbin
INCLUDEDIR ?= $(PREFIX)/include
MANDIR	?= $(PREFIX)/share/man
DESTDIR	?=
# make's built-in CC is "cc", so ?= would never apply
ifeq ($(origin CC),default)
CC	:= gcc
endif
ifeq ($(origin AR),default)
AR	:= ar
endif
PKG_CONFIG ?= pkg-config
PROTOC_C ?= protoc-c
SPARSE	?= sparse

# Goals that must work before a compiler is installed read no probes.
ifneq ($(filter-out deps clean help,$(or $(MAKECMDGOALS),all)),)
include scripts/Makefile.build
endif
include scripts/Makefile.targets
