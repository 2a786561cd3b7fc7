"""What is tried again."""

from prefect.states import Completed, Failed

from elder.errors import UserError
from tasks.errors import Unreachable
from tasks.retry import try_again


def test_only_what_may_pass_by_itself_is_tried_again() -> None:
    assert try_again(None, None, Failed(data=Unreachable("the server is away")))
    assert try_again(None, None, Failed(data=RuntimeError("who knows")))
    assert not try_again(None, None, Failed(data=UserError("access denied")))
    assert not try_again(None, None, Completed(data=1))
