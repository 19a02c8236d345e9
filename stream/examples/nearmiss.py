#!/usr/bin/env python3
"""A camera, a subscriber and requests, in Python 3.8 or later and nothing else.

    nearmiss.py camera DETECTOR CAMERA IMAGE…   publish images, or a folder of them, as frames
    nearmiss.py watch DETECTOR                  print events as they come, one JSON object a line
    nearmiss.py score DETECTOR IMAGE            have one image judged now; nothing is stored
    nearmiss.py mark DETECTOR VERDICT EVENT     say of an event: normal, anomalous, seen, withdrawn

It speaks as much of the NATS client protocol as that takes, so that it can be read
as a recipe for any language: https://docs.nats.io/reference/reference-protocols.
The library nats-py does the same, and reconnects besides. What the subjects,
headers and codes mean is in stream/README.md.
"""

import argparse
import base64
import binascii
import hashlib
import json
import os
import secrets
import socket
import ssl
import sys
import time
import urllib.parse


class Refused(Exception):
    """What the broker or a service answered instead of doing what was asked."""


class Message:
    def __init__(self, subject, reply, headers, data, status=""):
        self.subject, self.reply, self.headers, self.data, self.status = subject, reply, headers, data, status


class Connection:
    """One connection to a NATS server, for one thread."""

    def __init__(self, server, nkey_file=None, ca=None, patience=30.0):
        url = urllib.parse.urlsplit(server if "://" in server else "nats://" + server)
        self.patience = patience
        self.sock = socket.create_connection((url.hostname, url.port or 4222), timeout=patience)
        self.got = bytearray()  # and not yet understood
        self.sid, self.waiting = 0, {}  # messages that came for subscriptions not asked about
        self.info = json.loads(self._take(self._line_end()).split(b" ", 1)[1])  # INFO {…}
        if self.info.get("tls_required") or url.scheme == "tls":
            context = ssl.create_default_context(cafile=ca)
            self.sock = context.wrap_socket(self.sock, server_hostname=url.hostname)
        hello = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "lang": "python", "version": "1", "name": "nearmiss.py"}
        inbox = "_INBOX"
        if nkey_file:
            key = NKey(open(nkey_file, encoding="ascii").read())
            hello["nkey"] = key.public
            hello["sig"] = base64.urlsafe_b64encode(key.sign(self.info["nonce"].encode())).rstrip(b"=").decode()
            inbox = "_INBOX_" + key.public  # the only one that this identity may read
        elif url.username:
            hello["user"], hello["pass"] = urllib.parse.unquote(url.username), urllib.parse.unquote(url.password or "")
        self.inbox = inbox + "." + secrets.token_hex(8)
        self._send(b"CONNECT %s\r\n" % json.dumps(hello).encode())
        self.flush()

    def _send(self, data):
        self.sock.sendall(data)

    def _fill(self):
        part = self.sock.recv(1 << 16)
        if not part:
            raise ConnectionError("the broker has closed the connection")
        self.got += part

    def _line_end(self):
        while b"\r\n" not in self.got:
            self._fill()
        return self.got.index(b"\r\n") + 2

    def _take(self, size):
        out = bytes(self.got[:size])
        del self.got[:size]
        return out

    def _read(self):
        """The next message for one of the subscriptions, as (sid, message), or None for a PONG.

        Nothing is taken before all of it is there, so that a TimeoutError loses nothing.
        """
        while True:
            end = self._line_end()
            verb, _, rest = bytes(self.got[: end - 2]).partition(b" ")
            if verb in (b"MSG", b"HMSG"):
                fields = rest.decode().split(" ")
                while len(self.got) < end + int(fields[-1]) + 2:
                    self._fill()
                self._take(end)
                body = self._take(int(fields[-1]) + 2)[:-2]
                headers, status = {}, ""
                if verb == b"HMSG":
                    head, body = body[: int(fields[-2])], body[int(fields[-2]) :]
                    lines = head.decode().split("\r\n")
                    status = lines[0][len("NATS/1.0") :].strip()  # of answers by the server itself: 503, 408, …
                    for text in lines[1:]:
                        name, colon, value = text.partition(":")
                        if colon:
                            headers[name] = value.strip()
                named = len(fields) == (4 if verb == b"MSG" else 5)  # a subject to answer to
                return int(fields[1]), Message(fields[0], fields[2] if named else "", headers, body, status)
            self._take(end)
            if verb == b"PING":
                self._send(b"PONG\r\n")
            elif verb == b"PONG":
                return None
            elif verb == b"-ERR":
                raise Refused(rest.decode().strip("'"))

    def flush(self):
        """Returns when the server has dealt with all that was sent."""
        self._send(b"PING\r\n")
        while True:
            got = self._read()
            if got is None:
                return
            self.waiting.setdefault(got[0], []).append(got[1])

    def publish(self, subject, data=b"", headers=None, reply=""):
        target = subject + (" " + reply if reply else "")
        if headers:
            head = ("NATS/1.0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n").encode()
            self._send(b"HPUB %s %d %d\r\n" % (target.encode(), len(head), len(head) + len(data)) + head + data + b"\r\n")
        else:
            self._send(b"PUB %s %d\r\n" % (target.encode(), len(data)) + data + b"\r\n")

    def subscribe(self, subject):
        self.sid += 1
        self._send(b"SUB %s %d\r\n" % (subject.encode(), self.sid))
        return self.sid

    def next(self, sid, patience=None):
        """The next message of a subscription; TimeoutError after patience seconds, None waits for ever."""
        end = None if patience is None else time.monotonic() + patience
        while not self.waiting.get(sid):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("no answer")
            self.sock.settimeout(left)
            try:
                got = self._read()
            finally:
                self.sock.settimeout(self.patience)
            if got:
                self.waiting.setdefault(got[0], []).append(got[1])
        return self.waiting[sid].pop(0)

    def request(self, subject, data=b"", headers=None):
        reply = self.inbox + "." + secrets.token_hex(8)
        sid = self.subscribe(reply)
        self._send(b"UNSUB %d 1\r\n" % sid)  # after one answer
        self.publish(subject, data, headers, reply)
        answer = self.next(sid, self.patience)
        self.waiting.pop(sid, None)
        if answer.status.startswith("503"):
            raise Refused(f"nobody answers on {subject}")
        return answer


class NKey:
    """The key of an identity, as nearmiss users add writes it: an Ed25519 seed (RFC 8032)."""

    P = 2**255 - 19
    ORDER = 2**252 + 27742317777372353535851937790883648493
    D = -121665 * pow(121666, P - 2, P) % P
    BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
    BASE_Y = 46316835694926478169428394003475163141307993866256225615783033603165251855960

    def __init__(self, text):
        seed = next((w for w in text.split() if w.startswith("SU")), "")
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
        if len(raw) != 36 or binascii.crc_hqx(raw[:-2], 0) != int.from_bytes(raw[-2:], "little"):
            raise ValueError("the file holds no NKey seed of a user")
        half = hashlib.sha512(raw[2:34]).digest()
        self.scalar = int.from_bytes(half[:32], "little") & ((1 << 254) - 8) | (1 << 254)
        self.prefix = half[32:]
        self.point = self._pack(self._times(self.scalar))
        body = bytes([20 << 3]) + self.point  # "U"
        self.public = base64.b32encode(body + binascii.crc_hqx(body, 0).to_bytes(2, "little")).rstrip(b"=").decode()

    def sign(self, message):
        r = int.from_bytes(hashlib.sha512(self.prefix + message).digest(), "little") % self.ORDER
        commitment = self._pack(self._times(r))
        k = int.from_bytes(hashlib.sha512(commitment + self.point + message).digest(), "little") % self.ORDER
        return commitment + ((r + k * self.scalar) % self.ORDER).to_bytes(32, "little")

    # Points are (X, Y, Z, T) with x = X/Z, y = Y/Z and xy = T/Z.
    def _add(self, a, b):
        m = (a[1] - a[0]) * (b[1] - b[0]) % self.P
        n = (a[1] + a[0]) * (b[1] + b[0]) % self.P
        t, z = 2 * self.D * a[3] * b[3] % self.P, 2 * a[2] * b[2] % self.P
        e, f, g, h = n - m, z - t, z + t, n + m
        return e * f % self.P, g * h % self.P, f * g % self.P, e * h % self.P

    def _times(self, scalar):
        total, step = (0, 1, 1, 0), (self.BASE_X, self.BASE_Y, 1, self.BASE_X * self.BASE_Y % self.P)
        while scalar:
            if scalar & 1:
                total = self._add(total, step)
            step, scalar = self._add(step, step), scalar >> 1
        return total

    def _pack(self, point):
        inverse = pow(point[2], self.P - 2, self.P)
        x, y = point[0] * inverse % self.P, point[1] * inverse % self.P
        return (y | (x & 1) << 255).to_bytes(32, "little")


def store(nc, subject, data, headers):
    """A JetStream publish: returns when the broker has the message on disk."""
    while True:
        try:
            answer = json.loads(nc.request(subject, data, headers).data)
        except TimeoutError:
            continue  # again: the same Nats-Msg-Id is stored once
        if "error" not in answer:
            return answer
        if answer["error"].get("err_code") != 10077:
            raise Refused(f"{subject}: {answer['error'].get('description')}")
        time.sleep(0.5)  # the queue, or the detector's share of it, is full


def publish_frame(nc, detector, camera, frame, image, source, limit=None):
    headers = {
        "Nearmiss-Frame-Id": frame,
        "Nearmiss-Captured-At": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "Nearmiss-Source": urllib.parse.quote(source, safe="/ :.-_"),
        "Nats-Msg-Id": f"{detector}/{camera}/{frame}",
    }
    if len(image) > (limit or nc.info["max_payload"] - 4096):
        headers.update(publish_object(nc, f"frames/{detector}/{camera}/{frame}", image))
        image = b""
    return store(nc, f"nearmiss.frames.{detector}.{camera}", image, headers)


def publish_object(nc, name, data, bucket="NM_LARGE", chunk=128 << 10):
    """Stores what is too large for one message (NATS ADR-20): chunks, then what they are."""
    nuid = secrets.token_hex(11)
    parts = [data[i : i + chunk] for i in range(0, len(data), chunk)]
    for i, part in enumerate(parts):
        store(nc, f"$O.{bucket}.C.{nuid}", part, {"Nats-Msg-Id": f"{nuid}-{i}"})
    digest = hashlib.sha256(data)
    about = {
        "name": name, "bucket": bucket, "nuid": nuid, "size": len(data), "chunks": len(parts),
        "mtime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "options": {"max_chunk_size": chunk},
        "digest": "SHA-256=" + base64.urlsafe_b64encode(digest.digest()).decode(),
    }
    key = base64.urlsafe_b64encode(name.encode()).decode()
    store(nc, f"$O.{bucket}.M.{key}", json.dumps(about).encode(), {"Nats-Rollup": "sub", "Nats-Msg-Id": f"{nuid}-{len(parts)}"})
    return {"Nearmiss-Object": name, "Nearmiss-Object-Digest": digest.hexdigest()}


def ask(nc, subject, data, headers=None):
    """A request to a service: its answer, or Refused with one of the codes."""
    answer = nc.request(subject, data, headers)
    code = answer.headers.get("Nats-Service-Error-Code")
    if code:
        raise Refused(f"{answer.headers.get('Nats-Service-Error')} ({code})")
    return json.loads(answer.data)


def event_of(message):
    """An event as one object: its data, with id and kind, which travel in the headers."""
    kind = message.headers["ce-type"].split(".")[2]
    return {"id": message.headers["ce-id"], "kind": kind, **json.loads(message.data)}


def watch(nc, detector, durable=None, api="NM.API"):
    """Events, each with a function to call when it has been dealt with."""
    if durable is None:  # those that come from now on
        events = nc.subscribe(f"nearmiss.events.{detector}.*.*")
        nc.flush()
        print("listening", file=sys.stderr, flush=True)
        while True:
            yield event_of(nc.next(events)), lambda: None
    inbox = nc.inbox + ".pull"
    pulled = nc.subscribe(inbox)
    while True:  # one at a time; what is not acknowledged comes again
        nc.publish(f"{api}.CONSUMER.MSG.NEXT.NM_EVENTS.{durable}", b'{"batch":1,"expires":20000000000}', reply=inbox)
        message = nc.next(pulled)
        if message.status.startswith("503"):
            raise Refused(f"there is no consumer {durable}")
        if not message.status:  # else 408: none has come meanwhile
            yield event_of(message), lambda: nc.publish(message.reply, b"+ACK")


def images(paths):
    for path in paths:
        if os.path.isdir(path):
            yield from (os.path.join(path, name) for name in sorted(os.listdir(path)))
        else:
            yield path


def main():
    parser = argparse.ArgumentParser(description="A camera, a subscriber and requests of Nearmiss, in Python's standard library.")
    parser.add_argument("--server", default=os.environ.get("NEARMISS_SERVER", "nats://127.0.0.1:4222"))
    parser.add_argument("--nkey", default=os.environ.get("NEARMISS_NKEY"), help="key of this program's identity, from nearmiss users add")
    parser.add_argument("--tls-ca", default=os.environ.get("NEARMISS_TLS_CA"))
    commands = parser.add_subparsers(dest="command", required=True)
    c = commands.add_parser("camera")
    c.add_argument("detector")
    c.add_argument("camera")
    c.add_argument("images", nargs="+")
    c.add_argument("--limit", type=int, help="bytes above which an image travels as an object (default: what the broker takes)")
    c = commands.add_parser("watch")
    c.add_argument("detector")
    c.add_argument("--durable", help="consumer that remembers what was seen: watch-NAME of a subscriber of nearmiss users")
    c.add_argument("--count", type=int, help="end after so many events")
    c = commands.add_parser("score")
    c.add_argument("detector")
    c.add_argument("image")
    c = commands.add_parser("mark")
    c.add_argument("detector")
    c.add_argument("verdict")
    c.add_argument("event")
    args = parser.parse_args()
    nc = Connection(args.server, args.nkey or None, args.tls_ca or None)

    if args.command == "camera":
        run = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(4)  # two runs are two series of frames
        for i, path in enumerate(images(args.images)):
            with open(path, "rb") as f:
                publish_frame(nc, args.detector, args.camera, f"{run}-{i}", f.read(), path, args.limit)
    elif args.command == "watch":
        for i, (event, acknowledge) in enumerate(watch(nc, args.detector, args.durable), 1):
            print(json.dumps(event), flush=True)
            acknowledge()
            if i == args.count:
                nc.flush()
                break
    elif args.command == "score":
        with open(args.image, "rb") as f:
            print(json.dumps(ask(nc, "nearmiss.api.worker.score-now", f.read(), {"Nearmiss-Detector": args.detector})))
    elif args.command == "mark":
        ask(nc, "nearmiss.api.control.feedback", json.dumps({"detector": args.detector, "verdict": args.verdict, "id": args.event}).encode())
        print("marked", args.verdict)


if __name__ == "__main__":
    try:
        main()
    except (Refused, ConnectionError, TimeoutError, OSError, ValueError) as e:
        sys.exit(f"nearmiss.py: {e}")
    except KeyboardInterrupt:
        pass
