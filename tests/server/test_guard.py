"""Who the viewer's server answers."""

from __future__ import annotations

import pytest

from portrait360.server.guard import refusal

TOKEN = "secret"
HERE = {"host": "127.0.0.1:8080"}


def test_the_page_and_its_requests_are_answered():
    assert refusal("GET", "/secret/", HERE, TOKEN) is None
    assert refusal("GET", "/secret/people", HERE | {"sec-fetch-site": "same-origin"}, TOKEN) is None
    own = HERE | {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}
    assert refusal("POST", "/secret/people", own, TOKEN) is None


def test_programs_without_a_browser_may_write():
    assert refusal("POST", "/secret/people", HERE, TOKEN) is None


@pytest.mark.parametrize("host", ["localhost:9000", "localhost", "[::1]:8080"])
def test_a_tunnel_may_end_at_another_port(host):
    assert refusal("GET", "/secret/", {"host": host}, TOKEN) is None


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1.evil.example:8080", "evil.example:127.0.0.1"])
def test_names_that_others_point_here_are_refused(host):
    status, words = refusal("GET", "/secret/", {"host": host}, TOKEN) or (200, "")
    assert status == 403
    assert "this machine" in words


@pytest.mark.parametrize("path", ["/", "/secre/", "/secrets/people", "//secret/", "secret", "/people"])
def test_without_the_token_there_is_nothing(path):
    assert (refusal("GET", path, HERE, TOKEN) or (200,))[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_other_pages_are_refused(method, headers):
    assert (refusal(method, "/secret/people", HERE | headers, TOKEN) or (200,))[0] == 403


def test_a_browser_that_writes_says_where_it_stands():
    assert (refusal("POST", "/secret/people", HERE | {"sec-fetch-site": "none"}, TOKEN) or (200,))[0] == 403
