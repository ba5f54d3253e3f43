"""Ceph's S3 gateway over a cluster of one monitor and one storage daemon, both in memory.

They run from a Debian tree in namespaces of their own, like a throwaway builder, and end with
their first process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final
from urllib.parse import urlencode, urlsplit

import urllib3
from minio.credentials.credentials import Credentials
from minio.signer import sign_v4_s3
from minio.time import utcnow

from toolbox import debian_packages, throwaway_builder
from toolbox.base_tree import NAMESPACES, plain_tree
from toolbox.errors import ToolboxError
from toolbox.servers.s3_server import Credential, S3Server, first_json

PACKAGES = ("ceph-mon", "ceph-osd", "radosgw")

ACCOUNT = "RGW00000000000000001"
"""The account that the deploying user is root of, and that builders' users belong to."""

CONFIGURATION = """\
[global]
fsid = 6f1a6f0e-1d1f-4f6a-8a57-3b1e0c9c7a11
mon host = v2:127.0.0.1:{monitor}
public addr = 127.0.0.1
run dir = /mnt
keyring = /mnt/keyring
admin socket =
log file = /mnt/$name.log
ms bind msgr1 = false
mon allow pool size one = true
mon data = /mnt/mon
osd data = /mnt/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
rgw frontends = beast ssl_endpoint=127.0.0.1:{gateway} ssl_certificate={tls}.pem \
ssl_private_key={tls}.key
"""

# $1 base tree, $2 the server's directory.
BOOT = """\
set -eu
mount --bind "$2" "$1/mnt"
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/run"
mount -t tmpfs tmpfs "$1/tmp"
mount --rbind /dev "$1/dev"
exec chroot "$1" sh -eu /mnt/cluster.sh
"""

# Debian's daemons look for their classes in a relative directory: they start in the root.
CLUSTER = """\
cd /
export CEPH_CONF=/mnt/ceph.conf
rm -rf /mnt/mon /mnt/osd
mkdir /mnt/mon /mnt/osd
ceph-authtool --create-keyring /mnt/keyring --gen-key -n mon. --cap mon 'allow *'
ceph-authtool /mnt/keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
ceph-authtool /mnt/keyring --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
monmaptool --create --clobber --fsid 6f1a6f0e-1d1f-4f6a-8a57-3b1e0c9c7a11 \\
    --addv a "v2:127.0.0.1:$MONITOR" /mnt/monmap
ceph-mon -i a --mkfs --monmap /mnt/monmap --keyring /mnt/keyring
ceph-mon -f -i a &
read -r uuid </proc/sys/kernel/random/uuid
ceph osd new "$uuid"
ceph-osd -i 0 --mkfs --osd-uuid "$uuid"
ceph-osd -f -i 0 &
exec radosgw -f -n client.admin
"""


def tree() -> Path:
    """Return the cached tree with the daemons, made on the first call."""
    return plain_tree("forky", PACKAGES)


@final
class CephRGW(S3Server):
    """A Ceph object gateway; its users are made with `radosgw-admin`, in one account."""

    title: ClassVar[str] = "Ceph RGW"
    version = "of Debian forky"

    def __init__(self, directory: Path, *, day: int = 0) -> None:
        """Take a directory; `day`, if not 0, is how many seconds count as one for expiry."""
        super().__init__(directory)
        self._day = day

    @classmethod
    def unavailable(cls) -> str | None:
        """Return why this machine cannot have a Debian tree in namespaces, or None."""
        return throwaway_builder.available()

    def _launch(self, ports: Sequence[int]) -> bool:
        monitor, self._port, *_ = ports
        debian_packages.install()
        base = tree()
        package = ["dpkg-query", "--show", "--showformat=${Version}", "radosgw"]
        self.version = self._tool(["chroot", str(base), *package])
        text = CONFIGURATION.format(
            monitor=monitor, gateway=self._port, tls="/mnt/certificates/server"
        )
        if self._day:
            text += f"rgw lc debug interval = {self._day}\n"
        (self.directory / "ceph.conf").write_text(text)
        (self.directory / "cluster.sh").write_text(CLUSTER)
        environment = {**os.environ, "MONITOR": str(monitor)}
        boot = [*NAMESPACES, "sh", "-c", BOOT, "ceph", str(base), str(self.directory)]
        if not self._start(boot, self._port, env=environment):
            return False
        self.admin("account", "create", f"--account-id={ACCOUNT}", "--account-name=nixcache")
        deployer = self._user("deployer", "--account-root")
        self.root_user, self.root_password = deployer.access_key_id, deployer.secret_access_key
        return True

    def make_user(self, name: str) -> Credential:
        """Make a user of the account."""
        return self._user(name)

    def let_write(self, user: str, bucket: str, policy: str) -> None:
        """Give the user an inline policy."""
        self._put_user_policy(user, f"{bucket}-write", policy)

    def let_read(self, user: str, bucket: str, policy: str) -> None:
        """Give the user an inline policy."""
        self._put_user_policy(user, f"{bucket}-read", policy)

    def admin(self, *arguments: str) -> str:
        """Run `radosgw-admin` beside the daemons; return what it printed."""
        inside = ["env", "CEPH_CONF=/mnt/ceph.conf", "radosgw-admin", *arguments]
        return self._tool(["chroot", str(self._root()), *inside])

    def _user(self, name: str, *more: str) -> Credential:
        words = [f"--uid={name}", f"--display-name={name}", f"--account-id={ACCOUNT}", *more]
        made = first_json(self.admin("user", "create", *words))
        (key,) = made["keys"]
        return Credential(str(key["access_key"]), str(key["secret_key"]))

    def _put_user_policy(self, user: str, name: str, policy: str) -> None:
        """Call the IAM API, as `aws iam put-user-policy` does."""
        body = urlencode(
            {
                "Action": "PutUserPolicy",
                "Version": "2010-05-08",
                "UserName": user,
                "PolicyName": name,
                "PolicyDocument": policy,
            }
        ).encode()
        url, now = urlsplit(f"{self.endpoint}/"), utcnow()
        digest = hashlib.sha256(body).hexdigest()
        headers = sign_v4_s3(
            method="POST",
            url=url,
            region=self.region,
            headers={
                "Host": url.netloc,
                "Content-Type": "application/x-www-form-urlencoded",
                "x-amz-content-sha256": digest,
                "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
            },
            credentials=Credentials(self.root_user, self.root_password),
            content_sha256=digest,
            date=now,
        )
        answer = urllib3.PoolManager(ca_certs=str(self.ca_file)).request(
            "POST", url.geturl(), body=body, headers={k: str(v) for k, v in headers.items()}
        )
        if answer.status != 200:
            raise ToolboxError(f"Ceph RGW: PutUserPolicy for {user}: {answer.data.decode()}")

    def _root(self) -> Path:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return Path(f"/proc/{children[0]}/root")
