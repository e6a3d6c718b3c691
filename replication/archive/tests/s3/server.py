"""A server that speaks S3 and refuses what is signed wrongly, for tests: `server.py ADDRESS PORT CERT KEY CA OUT`.

Serves HTTPS from memory until it is killed. Once there is a bucket and a key that may use it, their names are
written to OUT as two lines of shell.
"""

import os
import sys
import threading
import time

# So many requests are not asked who makes them: those that make the user.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "4"
os.environ["AWS_ACCESS_KEY_ID"] = "nobody"
os.environ["AWS_SECRET_ACCESS_KEY"] = "nothing"

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

POLICY = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}'


def main():
    address, port, cert, key, ca, out = sys.argv[1:]
    app = DomainDispatcherApplication(create_backend_app)
    serve = dict(threaded=True, ssl_context=(cert, key))
    threading.Thread(target=run_simple, args=(address, int(port), app), kwargs=serve, daemon=True).start()
    at = dict(endpoint_url=f"https://{address}:{port}", verify=ca, region_name="us-east-1")
    deadline = time.monotonic() + 60
    while True:
        try:
            iam = boto3.client("iam", **at)
            iam.create_user(UserName="tern")
            break
        except Exception as error:
            if time.monotonic() > deadline:
                sys.exit(f"the server does not answer: {error}")
            time.sleep(0.1)
    iam.put_user_policy(UserName="tern", PolicyName="all", PolicyDocument=POLICY)
    made = iam.create_access_key(UserName="tern")["AccessKey"]
    boto3.client("s3", **at).create_bucket(Bucket="tern-archive")
    with open(out + ".new", "w") as file:
        file.write(f"export TERN_S3_KEY={made['AccessKeyId']}\nexport TERN_S3_SECRET={made['SecretAccessKey']}\n")
    os.rename(out + ".new", out)
    threading.Event().wait()


main()
