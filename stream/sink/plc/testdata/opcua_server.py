"""An OPC UA server of another maker (asyncua) that speaks encrypted only, for the
tests: six variables, whose values it prints, a JSON object a line, whenever one has
changed.

usage: opcua_server.py URL CERTIFICATE KEY USER PASSWORD
"""

import asyncio
import json
import logging
import sys

from asyncua import Server, ua
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.user_managers import UserManager

url, certificate, key, name, password = sys.argv[1:]
logging.disable(logging.CRITICAL)


class Users(UserManager):
    def get_user(self, iserver, username=None, password=None, certificate=None):
        if username == name and password == sys.argv[5]:
            return User(role=UserRole.User, name=username)
        return None


async def main():
    server = Server(user_manager=Users())
    await server.init()
    server.set_endpoint(url)
    server.set_security_policy([
        ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt,
        ua.SecurityPolicyType.Aes128Sha256RsaOaep_SignAndEncrypt,
        ua.SecurityPolicyType.Aes256Sha256RsaPss_SignAndEncrypt,
    ])
    server.set_identity_tokens([ua.UserNameIdentityToken])
    await server.load_certificate(certificate)
    await server.load_private_key(key)
    space = await server.register_namespace("urn:line")
    line = await server.nodes.objects.add_object(ua.NodeId("line", space), "line")
    nodes = {}
    for k, kind, value in [
        ("result", ua.VariantType.Int16, 9), ("sequence", ua.VariantType.UInt32, 0), ("score", ua.VariantType.Float, 0.0),
        ("part", ua.VariantType.String, ""), ("coil", ua.VariantType.Boolean, True), ("heartbeat", ua.VariantType.UInt32, 0),
    ]:
        nodes[k] = await line.add_variable(ua.NodeId(k, space), k, value, varianttype=kind)
        await nodes[k].set_writable()
    async with server:
        print(json.dumps({"space": space}), flush=True)
        before = None
        while True:
            now = {k: await n.read_value() for k, n in nodes.items()}
            if now != before:
                print(json.dumps(now), flush=True)
                before = now
            await asyncio.sleep(0.002)


asyncio.run(main())
