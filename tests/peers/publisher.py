"""A vLLM event publisher for tests: libzmq's own PUB and the replay ROUTER.

Binds the port that it is given, or connects to the tcp://host:port that it is given.

Says "ready PUB_PORT REPLAY_PORT", then answers each command line on stdin with one line. It ends
with its stdin. The replay follows vllm/distributed/kv_events.py.

  await_subscriber                   waits for a SUB; answers with its topic prefix
  publish TOPIC FIRST_SEQ COUNT SIZE publishes batches of SIZE bytes and keeps them for replay
  send TOPIC SEQ PAYLOAD             publishes a batch of these bytes (hex) and keeps it for replay
  disconnect, connect                leaves the host that it connected to, and comes back
  raw FRAME...                       publishes one message of these frames (hex, "-" is empty)
  batch TOPIC SEQ PAYLOAD            publishes one batch (hex) and keeps it for replay
  keep TOPIC SEQ PAYLOAD             only keeps it: lost on the way
  replay FORMAT MODE                 how to answer from now on: FORMAT 0.25 or 0.26;
                                     MODE whole, holes (once, then whole), endless (no end
                                     marker), hangup or garbage
  keep_from SEQ                      forgets the batches before SEQ
"""

import os
import sys
import threading

import zmq

END = b"\xff" * 8


class Publisher:
    def __init__(self, port):
        self.context = zmq.Context()
        self.pub = self.socket()
        self.host = port if port.startswith("tcp://") else None
        if self.host:
            self.pub.connect(self.host)
        else:
            self.pub.bind(f"tcp://*:{port}")
        self.router = self.context.socket(zmq.ROUTER)
        self.router.bind("tcp://127.0.0.1:*")
        self.kept, self.format, self.mode = [], "0.26", "whole"

    def socket(self):
        # An XPUB is a PUB that lets its owner see who subscribes (pub_t extends xpub_t).
        pub = self.context.socket(zmq.XPUB)
        pub.xpub_verbose = True  # also where another subscriber already has that topic
        pub.set_hwm(100_000)  # vLLM's
        pub.ipv6 = True
        return pub

    def port(self, socket):
        if not socket.last_endpoint:
            return "0"
        return socket.last_endpoint.rsplit(b":", 1)[1].decode()

    def answer_replays(self):
        while True:
            client, _, start = self.router.recv_multipart()
            start = int.from_bytes(start, "big")
            if self.mode == "hangup":
                os._exit(0)
            if self.mode == "garbage":
                self.router.send_multipart([client, b"?"])
                continue
            for topic, seq, payload in self.kept:
                lost = self.mode == "holes" and seq % 3 == 1
                if seq >= start and not lost:
                    self.reply(client, topic, seq.to_bytes(8, "big"), payload)
            if self.mode != "endless":
                self.reply(client, b"", END, b"")
            if self.mode == "holes":
                self.mode = "whole"

    def reply(self, client, topic, seq, payload):
        topics = [topic] if self.format == "0.26" else []
        self.router.send_multipart([client, b"", *topics, seq, payload])

    def await_subscriber(self):
        while True:
            frame = self.pub.recv()
            if frame[:1] == b"\x01":
                return "subscribed " + frame[1:].decode()

    def publish(self, topic, first, count, size):
        for seq in range(int(first), int(first) + int(count)):
            batch = (topic.encode(), seq, bytes([seq % 256]) * int(size))
            self.kept.append(batch)
            self.pub.send_multipart([batch[0], seq.to_bytes(8, "big"), batch[2]])

    def batch(self, topic, seq, payload):
        self.keep(topic, seq, payload)
        topic, seq, payload = self.kept[-1]
        self.pub.send_multipart([topic, seq.to_bytes(8, "big"), payload])

    def keep(self, topic, seq, payload):
        self.kept.append((topic.encode(), int(seq), bytes.fromhex(payload)))

    def disconnect(self):
        self.pub.close(linger=0)
        self.pub = self.socket()

    def connect(self):
        self.pub.connect(self.host)

    def raw(self, *frames):
        frames = ["" if frame == "-" else frame for frame in frames]
        self.pub.send_multipart([bytes.fromhex(frame) for frame in frames])

    def replay(self, format, mode):
        self.format, self.mode = format, mode

    def keep_from(self, seq):
        self.kept = [batch for batch in self.kept if batch[1] >= int(seq)]


def main():
    publisher = Publisher(sys.argv[1] if len(sys.argv) > 1 else "*")
    threading.Thread(target=publisher.answer_replays, daemon=True).start()
    print("ready", publisher.port(publisher.pub), publisher.port(publisher.router), flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        answer = getattr(publisher, command)(*arguments)
        print(answer or "done", flush=True)
    os._exit(0)


main()
