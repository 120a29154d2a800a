"""The VMM of the example driver: a process with a name, which answers `who` and `colour …` on its control socket."""

import socket
import sys
from contextlib import suppress


def main(words: list[str]) -> None:
    given = dict(zip(words[::2], words[1::2], strict=True))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(given["--control"])
        listener.listen()
        while True:
            client, _ = listener.accept()
            with client, suppress(OSError):  # a client that hangs up is no reason to end
                asked = client.recv(1024)
                client.sendall(b"ok\n" if asked.startswith(b"colour ") else f"{given['--name']} running\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
