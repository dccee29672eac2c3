"""Remove secrets from text that is stored or shown: values of this process's environment, and what looks like one.

It is the last line of defence: nothing of the project prints a secret on purpose, but libraries print requests, and users environments.
"""

from __future__ import annotations

import json
import os
import re
from urllib.parse import quote

from training.config.addresses import without_passwords

_NAME = r"(?:SECRET|PASSWORD|PASSWD|TOKEN|ACCESS_KEY|ACCOUNT_KEY|PRIVATE_KEY|API_KEY|CREDENTIAL|WEBHOOK_URL|WEBHOOK_KEY)"
_SECRET_NAME = re.compile(_NAME)
_SHORTEST = 8
"""A shorter value of a variable, such as "token" or "true", is a word that a log may contain for other reasons."""
_PATTERNS = (
    # NAME=value, "NAME": "value" and NAME: value, in upper case as in an environment, or as AWS's files and libraries write them.
    re.compile(rf"(\b[A-Z0-9_]*{_NAME}[A-Z0-9_]*[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&}}]+"),
    re.compile(r"(?i)(\b(?:aws_?)?(?:secret_?access_?key|session_?token|access_?key_?id)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&}]+"),
    # The parameters of an address that was signed, by S3 or by Azure.
    re.compile(r"(?i)([?&](?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig|token|key)=)[^\s\"'&<>]+"),
    re.compile(r"(?i)(\bAuthorization[\"']?\s*[=:]\s*[\"']?(?:Bearer |Basic |AWS4-HMAC-SHA256 )?)[^\s\"',}][^\"'\n}]*"),
    # Addresses that are secrets themselves: the incoming webhooks of Slack, Mattermost and Teams.
    re.compile(r"(https?://hooks\.slack\.com/)[^\s\"'<>]+"),
    re.compile(r"(https?://[^\s/\"'<>]+/hooks/)[^\s\"'<>]+"),
    re.compile(r"(https?://[^\s/\"'<>]+\.(?:webhook\.office|logic\.azure|api\.powerplatform)\.com[^\s/\"'<>]*/)[^\s\"'<>]+"),
    re.compile(r"\b((?:AKIA|ASIA))[A-Z0-9]{16}\b"),
)


def without_secrets(text: str) -> str:
    """Return the text with stars in place of secrets."""
    # A value from a file often ends with a line break, which its user strips.
    secrets = [value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    values = {form for value in secrets if len(value) >= _SHORTEST for form in _forms(value)}
    for value in sorted(values, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(value, "***")
    for pattern in _PATTERNS:
        text = pattern.sub(r"\1***", text)
    return without_passwords(text)


def _forms(value: str) -> tuple[str, ...]:
    """Return a value as text may have it: itself, in JSON, as Python shows it, and in an address."""
    return value, json.dumps(value)[1:-1], repr(value)[1:-1], quote(value, safe="")
