# SPDX-License-Identifier: MIT
"""cq for Python: the codec of libcq, activation dumps, quality figures."""
