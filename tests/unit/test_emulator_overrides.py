"""How a queue's HTTP target changes the request of a task."""

import pytest

from forkjoin_gcp.emulators.cloud_tasks.targets import Authorization, HttpRequest, HttpTarget

URL = "https://task.example/path?q=1#part"


@pytest.mark.parametrize(
    ("target", "url", "sent"),
    [
        (HttpTarget(), URL, URL),
        (HttpTarget(scheme="http"), URL, "http://task.example/path?q=1#part"),
        (HttpTarget(host="example.net"), "https://www.google.com", "https://example.net"),
        (HttpTarget(host="::1"), "http://a:80/", "http://[::1]:80/"),
        # The examples of the API's documentation.
        (
            HttpTarget(port=123),
            "https://www.example.com/example",
            "https://www.example.com:123/example",
        ),
        (HttpTarget(port=0), "https://a:8080/b", "https://a/b"),
        (HttpTarget(path=""), "https://a/b?c=d", "https://a?c=d"),
        (HttpTarget(path="x/y"), "https://a/b", "https://a/x/y"),
        (HttpTarget(query=""), "https://a/b?c=d", "https://a/b"),
        (HttpTarget(query="x=1&y=2"), "https://a/b?c=d", "https://a/b?x=1&y=2"),
        # Without `always`, only what the task has not.
        (
            HttpTarget("http", "h", 9, "/p", "q", always=False),
            "https://a:8080/b?c=d",
            "https://a:8080/b?c=d",
        ),
        (HttpTarget("http", "h", 9, "/p", "q", always=False), "https://a", "https://a:9/p?q"),
    ],
)
def test_parts_of_the_uri_are_replaced(target: HttpTarget, url: str, sent: str) -> None:
    assert target.applied_to(HttpRequest(url)).url == sent


def test_only_what_is_set_is_replaced() -> None:
    given = HttpRequest(URL, "POST", {"A": "1", "B": "2"}, b"body", Authorization("a@b"))
    assert HttpTarget().applied_to(given) == given
    own = Authorization("c@d", "audience")
    sent = HttpTarget(method="DELETE", headers=(("a", "3"),), authorization=own).applied_to(given)
    assert sent.method == "DELETE"
    assert sent.headers == {"a": "3", "B": "2"}
    assert sent.body == b""
    assert sent.authorization == own
