#!/bin/bash
# SPDX-License-Identifier: MIT
# TIMEOUT=240
#
# Documentation/operations.md: every command of it, in a systemd booted for it.
exec "$(dirname "$0")/boot.sh" operations
