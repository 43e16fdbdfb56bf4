"""Images by address: public ones only, also after redirects; the address that was checked is connected to."""

import socket

import httpx
import pytest

from compose.serve import uploads
from compose.serve.uploads import (
    fetch,
    public_address,
)
from tests.loopback import Server, jpeg, serving

PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "0.0.0.0",
    "100.64.0.1",
]
PRIVATE += [
    "224.0.0.1",
    "239.1.1.1",
    "255.255.255.255",
    "192.0.2.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
]
PRIVATE += [
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "2001:0:1::1",
    "ff0e::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:0:10.0.0.1",
    "64:ff9b:1::a00:1",
    "2002:808:808::1",
    "fec0::1",
    "4000::1",
]


def resolving(monkeypatch, *addresses):
    asked = []

    def getaddrinfo(host, port, **options):
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, 1, 6, "", (each, port)) for each in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("address", PRIVATE)
def test_address_that_is_not_public_is_refused(monkeypatch, address):
    resolving(monkeypatch, "8.8.8.8", address)
    with pytest.raises(ValueError, match="^image: a.example is not a public address$"):
        public_address("image", "a.example", 80)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_address_is_taken(monkeypatch, address):
    resolving(monkeypatch, address)
    assert public_address("image", "a.example", 80) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/a",
        "http://127.0.0.1/a",
        "http://2130706433/a",
        "http://0x7f.1/a",
        "http://[::1]/a",
        "http://[::ffff:127.0.0.1]/a",
    ],
)
def test_spellings_of_this_machine_are_refused(url):
    with pytest.raises(ValueError, match="is not a public address|is not known"):
        fetch("image", url, 100)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://anne:secret@a.example/b.png", "only plain http"),
        ("http:///b.png", "only plain http"),
        ("http://a.example:99999/b.png", "not an address"),
        ("http://[::1/b.png", "not an address"),
    ],
)
def test_address_in_another_form_is_refused(url, text):
    with pytest.raises(ValueError, match=f"^image: {text}"):
        fetch("image", url, 100)


@pytest.fixture
def site(monkeypatch):
    yield from serving(monkeypatch)


@pytest.fixture
def named_site(site, monkeypatch):
    """The site on this machine under the name a.example, as if its address were public."""
    asked = []

    def check(field, host, port):
        asked.append(host)
        if host != "a.example":
            raise ValueError(f"{field}: {host} is not a public address")
        return "127.0.0.1"

    monkeypatch.setattr(uploads, "public_address", check)
    return site.replace("127.0.0.1", "a.example"), asked


def test_checked_address_is_the_one_connected_to(named_site):
    url, asked = named_site
    Server.files["/a.jpg"] = jpeg(1)
    assert fetch("image", f"{url}/a.jpg", 10_000) == jpeg(1)  # the name itself leads nowhere
    assert asked == ["a.example"]


def test_body_that_is_too_large_is_refused(named_site):
    Server.files["/a.jpg"] = bytes(2_000_001)
    with pytest.raises(ValueError, match="^image has more than 2 MB"):
        fetch("image", f"{named_site[0]}/a.jpg", 2_000_000)


@pytest.mark.parametrize(
    ("luck", "text"),
    [
        (404, "a.example answered 404"),
        (500, "answered 500"),
        ("short", "could not be read"),
        ("hang up", "could not be read"),
    ],
)
def test_failed_answer_is_refused_in_words(named_site, luck, text):
    Server.files["/a.jpg"], Server.luck["/a.jpg"] = jpeg(1), [luck, "always"]
    with pytest.raises(ValueError, match=text):
        fetch("image", f"{named_site[0]}/a.jpg", 10_000)


def redirecting(monkeypatch, *places):
    """Every GET answers with the next redirect."""
    remaining = iter(places)

    def answer(self, method, url, **options):
        class Reply:
            def __enter__(self):
                return httpx.Response(302, headers={"location": next(remaining, "/again")})

            def __exit__(self, *error):
                return None

        return Reply()

    monkeypatch.setattr(httpx.Client, "stream", answer)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("http://127.0.0.1/secret", "127.0.0.1 is not a public"),
        ("//b.example/x", "b.example is not a public"),
        ("file:///etc/passwd", "only plain http"),
        ("gopher://a.example/", "only plain http"),
        ("/again", "more than 5 redirects"),
    ],
)
def test_redirect_is_checked_like_the_first_address(named_site, monkeypatch, place, text):
    redirecting(monkeypatch, place)
    with pytest.raises(ValueError, match=f"^image: .*{text}|^image: {text}"):
        fetch("image", f"{named_site[0]}/a.jpg", 10_000)
