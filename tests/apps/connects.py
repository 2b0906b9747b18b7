"""A task that tries to connect. The test puts the one port that it asks for into a copy of this file."""

import errno
import json
import socket

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import ConfigItem
from concurrent_swarm.tasks import Task


class Connects(Task):
    def __call__(self):
        granted, other = (tuple(self.told[name]) for name in ("granted", "other"))
        return {
            "granted": self.tried(granted), "other": self.tried(other), "multipath": self.tried(other, proto=262),
            "fast_open": self.tried(other, flags=0x20000000), "udp": self.tried(other, kind=socket.SOCK_DGRAM),
            "raw": self.tried(other, kind=socket.SOCK_RAW, proto=1), "listen": self.listens(),
            "bound": self.listens(("127.0.0.1", 0)), "unix": self.tried(self.told["unix"], socket.AF_UNIX),
            "netlink": self.tried((0, 0), 16, socket.SOCK_RAW),
        }  # fmt: skip

    def tried(self, address, family=socket.AF_INET, kind=socket.SOCK_STREAM, proto=0, flags=0):
        try:
            with socket.socket(family, kind, proto) as sock:
                sock.sendto(b"x", flags, address) if flags else sock.connect(address)
                return True
        except OSError as error:
            return error.errno not in (errno.EPERM, errno.EACCES)

    def listens(self, address=None):
        try:
            with socket.socket() as sock:
                if address:
                    sock.bind(address)
                sock.listen()
                return True
        except OSError:
            return False


class Connecting(ApplicationNode):
    network = ["127.0.0.1:1"]
    told = ConfigItem("connects", "told", "", "what the test says, in JSON")

    def start_processing(self):
        self.push_task(Connects("connects", told=json.loads(self.told)))

    def task_finished(self, task, result, error):
        self.result = result
        self.shutdown_main_loop()
