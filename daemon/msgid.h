/* SPDX-License-Identifier: MIT */
/*
 * Message ids of journal entries that want attention; systemd/cq.catalog
 * explains them (journalctl -x).
 */
#ifndef CQD_MSGID_H
#define CQD_MSGID_H

#define CQD_MSG_SERVING		"02591151d58c4cc0bd5848e3fc2b4777"
#define CQD_MSG_CHECKSUM	"58d91a30949d4a2a8198c1eb1491e2f3"
#define CQD_MSG_MODEL_FAILED	"2fcb8f86419f4d499fdeb0ede263bad8"
#define CQD_MSG_UNWATCHED	"5ea68a2198944e4cbc32fbad3893eece"
#define CQD_MSG_NO_DESCRIPTORS	"8b9ff840b7d843ba9c68b62b4b0d61d0"
#define CQD_MSG_CONFIG_REFUSED	"5a43762d474e4ff1a4347a4720e4a0d5"
#define CQD_MSG_NOT_TAKEN_OVER	"6f60722162724f8f9d82fd5cf1aa1230"
#define CQD_MSG_HOLDER_LOST	"d8cc788771ec45919a6b3d33b9fbc6a8"

#endif /* CQD_MSGID_H */
