"""What S3 servers refuse and how they fail, in plain sentences made of codes, never of a server's own text."""

from botocore import exceptions as known
from botocore.parsers import ResponseParserError

from elder.errors import UserError
from tasks.errors import Unreachable
from tasks.store.manifest import PUBLISH_AGAIN

DENIED = {"AccessDenied", "AllAccessDisabled", "Forbidden", "403"}
EXPIRED = {
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
}
CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "RequestTimeTooSkewed",
}
ELSEWHERE = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
}
ABSENT = {"NoSuchKey", "404", "NotFound"}
TAKEN = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
EMPTY = {"InvalidRange", "416"}  # said of any range of an object without bytes
UNKNOWN_WAY = {"NotImplemented", "501"}  # also of a header that a server does not know
WORDLESS = {"400", "BadRequest"}  # what a HEAD, whose answer has no body, can say
BUSY = {
    "SlowDown",
    "InternalError",
    "InternalFailure",
    "ServiceUnavailable",
    "ServerBusy",
    "RequestTimeout",
    "RequestTimeoutException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "TooManyRequests",
    "TooManyRequestsException",
    "OperationAborted",
    "PriorRequestNotComplete",
    "BadDigest",  # what arrived was not what was sent
}
BUSY_STATUS = {408, 425, 429, 500, 502, 503, 504, 509}


WRITES = {"PutObject", "CreateMultipartUpload", "UploadPart"}
BOTO = (known.ClientError, known.BotoCoreError, ResponseParserError, ValueError)
BROKEN = (
    known.IncompleteReadError,
    known.ResponseStreamingError,
    known.FlexibleChecksumError,
    ResponseParserError,
)


class S3Refusal(UserError):
    """The server said no, with this code."""

    def __init__(self, sentence: str, code: str) -> None:
        super().__init__(sentence)
        self.code = code


def code_of(error: known.ClientError) -> str:
    """Return the code of a server's refusal; where its answer has no body, that is the status."""
    return str(error.response.get("Error", {}).get("Code", "an unknown error"))


def is_busy(error: known.ClientError) -> bool:
    """Say whether a refusal may pass: the server has too much to do, or is ill."""
    code = code_of(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    by_name = code in BUSY or "throttl" in code.lower()
    return by_name or status in BUSY_STATUS or code in map(str, BUSY_STATUS)


class Teller:
    """Tells the failures of one store.

    Args:
        url: of the store.
        endpoint: address of its server; None: AWS.
        encryption: what is asked of the server for each object, or None.
    """

    def __init__(self, url: str, endpoint: str | None, encryption: str | None) -> None:
        self.url = url
        self.bucket = url.removeprefix("s3://").partition("/")[0]
        self.place = endpoint or "the S3 service"
        self.encryption = encryption

    def tell(self, error: BaseException) -> UserError:
        """Return the refusal of one sentence that an error of boto3 becomes; ``Unreachable``, if it may pass."""
        if isinstance(error, known.ClientError):
            code = code_of(error)
            if is_busy(error):
                return Unreachable(
                    f"{self.url}: {self.place} is overloaded or ill ({code}): try again later, or ask who runs it"
                )
            writing = error.operation_name in WRITES
            return S3Refusal(f"{self.url}: {self._refusal(code, writing)}", code)
        passing = self._passing(error)
        if passing:
            return Unreachable(f"{self.url}: {passing}")
        return UserError(f"{self.url}: {self._unusable(error)}")

    def wordless(self) -> Unreachable:
        """Return what is said of a 400 without a reason: the credentials are good, so it may pass."""
        return Unreachable(
            f"{self.url}: {self.place} answers 400 and gives no reason: try again later, or ask who runs it"
        )

    def _passing(self, error: BaseException) -> str | None:
        """Return what is said of a failure of the network, or None of another one."""
        what = type(error).__name__
        if isinstance(error, BROKEN):
            return f"an answer of {self.place} broke off ({what}): check the network"
        if isinstance(error, known.SSLError) and "CERTIFICATE_VERIFY" in str(error):
            return None
        if isinstance(error, known.HTTPClientError | known.ConnectionError):
            return f"{self.place} cannot be reached ({what}): check store.endpoint and the network"
        return None

    def _unusable(self, error: BaseException) -> str:
        what = type(error).__name__
        if isinstance(
            error,
            known.NoCredentialsError
            | known.PartialCredentialsError
            | known.CredentialRetrievalError,
        ):
            return "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role"
        if isinstance(
            error, known.ProfileNotFound | known.SSOError | known.TokenRetrievalError
        ):
            return f"the profile's credentials cannot be read ({what}): check AWS_PROFILE or log in again"
        if isinstance(error, known.ParamValidationError | known.InvalidRegionError):
            return f"the name of the bucket or region is not valid ({what}): correct store.url"
        if isinstance(error, known.SSLError):
            return f"the certificate of {self.place} is not trusted: correct store.endpoint, or set AWS_CA_BUNDLE"
        return f"the request failed ({what}): check store.url, store.endpoint and store.region"

    def _refusal(self, code: str, writing: bool) -> str:
        if code == "NoSuchBucket":
            return f"the bucket {self.bucket!r} does not exist: create it or change store.url"
        if code in DENIED:
            return f"access denied: {self._denied(writing)}"
        if code in EXPIRED:
            return f"the credentials expired ({code}): get new ones, and give the command again"
        if code in CREDENTIALS:
            return f"the credentials are not accepted ({code}): renew them, and check the clock"
        if code in ELSEWHERE:
            return f"the bucket lies in another region ({code}): set store.region"
        if code in ABSENT:
            return f"a file of the model, or the bucket, is missing: {PUBLISH_AGAIN}"
        if writing and self.encryption:
            return (
                f"the server does not encrypt with {self.encryption} ({code}): correct store.encryption and"
                " store.kms_key, or let these credentials use the key"
            )
        return f"the server refused with {code}: try again, or ask who runs it"

    def _denied(self, writing: bool) -> str:
        if not writing:
            return "let these credentials list, read and write there"
        if self.encryption:
            return (
                "let these credentials write there, and use the key of store.encryption"
            )
        return (
            "let these credentials list, read and write there; if the bucket demands encryption, set store.encryption"
            " to AES256 or aws:kms"
        )
