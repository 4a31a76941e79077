# SPDX-License-Identifier: MIT
"""The worker's tokenizer against lm/tokenizer.py, its specification, on the
documentation and on random bytes: tokenizer.py LM CQ-WORKER DIR"""
import glob
import os
import random
import struct
import subprocess
import sys

lm, worker, folder = sys.argv[1:]
sys.path.insert(0, lm)
sys.dont_write_bytecode = True
from tokenizer import Tokenizer  # noqa: E402

SPACES = ["\u0085", "\u00a0", "\u1680", "\u2000", "\u200a", "\u200b", "\u2028", "\u2029",
          "\u202f", "\u205f", "\u3000", "\x1c", "\x1f", "\x0b", "\u00e9", "\u20ac", "\U0001f600"]
ALPHABETS = [bytes(range(256)),
             b" \t\n\raZ09-=.,{}_\x1c\xc2\xa0\x85\xe2\x80\xa8",
             b"\xc2\xa0\xe2\x80\xe1\x9a\xe3\x81\xf0\x85 a"]


def samples():
    for path in sorted(glob.glob(os.path.join(lm, "../../../Documentation/*.md"))):
        with open(path, "rb") as f:
            yield path, f.read()
    rng = random.Random(1)
    for i in range(40):
        n = rng.randrange(1, 4000)
        if i % 4 == 3:
            data = "".join(rng.choice(SPACES + list(" aB3-\n")) for _ in range(n)).encode()
        else:
            data = bytes(rng.choice(ALPHABETS[i % 4]) for _ in range(n))
        yield f"random text {i}", data


tok = Tokenizer()
text, out = os.path.join(folder, "text"), os.path.join(folder, "ids")
for name, data in samples():
    with open(text, "wb") as f:
        f.write(data)
    subprocess.run([worker, "tokenize", "--lm", lm, "--out", out, text], check=True,
                   stdout=subprocess.DEVNULL)
    with open(out, "rb") as f:
        raw = f.read()
    ids = list(struct.unpack(f"<{len(raw) // 2}H", raw))
    if ids != tok.encode(data.decode(errors="surrogateescape")):
        sys.exit(f"{name}: the ids differ")
