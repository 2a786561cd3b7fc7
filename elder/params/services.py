"""Where results go, who is told, and how they are signed: what belongs to a machine, and changes no number."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from elder.names import registered_name_fault
from elder.params.section import Auto, Section, place
from elder.secrecy import shown_address

# what is written down of it has no userinfo and no query: they may hold a secret, and change nothing that is made
Address = Annotated[str, PlainSerializer(shown_address, when_used="json")]


class Store(Section):
    """Where the bytes go."""

    url: Address = Field("store", description="local folder or s3://bucket/prefix")
    endpoint: Address | None = Field(
        None, description="endpoint of an S3-compatible server"
    )
    region: str | None = Field(None, description="region of the bucket")
    history: str | None = Field(
        None,
        description="where decisions lie, if others may write there than models; null: in the store",
    )
    encryption: Literal["AES256", "aws:kms"] | None = Field(
        None, description="what an S3 server encrypts with; null: as the bucket says"
    )
    kms_key: str | None = Field(
        None, description="key of aws:kms, by id or ARN; null: the account's own"
    )

    @field_validator("kms_key")
    @classmethod
    def _goes_with_kms(cls, key: str | None, others: ValidationInfo) -> str | None:
        if key is not None and others.data.get("encryption") != "aws:kms":
            raise ValueError("only with store.encryption aws:kms")
        return key


class Registry(Section):
    """Where runs and versions are recorded."""

    name: str = Field("novels-llama-shallow", description="registered model name")
    tracking_uri: Address = Field(
        "sqlite:///mlflow.db", description="MLflow tracking and registry"
    )
    experiment: str = Field("elder", min_length=1, description="MLflow experiment")

    @field_validator("name")
    @classmethod
    def _can_be_registered(cls, name: str) -> str:
        fault = registered_name_fault(name)
        if fault:
            raise ValueError(fault)
        return name


class Signing(Section):
    """How a published model is signed, in the format of OpenSSF Model Signing."""

    private_key: str | None = Field(
        "keys/signing.pem", description="EC key, made on first use; null: sign nothing"
    )
    trusted: str = Field(
        "keys/trusted.yaml",
        description="file of the public keys that are believed; commit it",
    )
    required: bool = Field(
        True,
        description="load from a store or registry only what a trusted key has signed",
    )
    command: str | None = Field(
        None,
        description="program that signs with a key of its own, in place of private_key",
    )
    keyless: bool = Field(
        False, description="sign with an identity, through Sigstore, instead of the key"
    )
    identity: str | None = Field(
        None,
        description="who must have signed, such as ci@example.org (keyless, audit)",
    )
    issuer: str | None = Field(
        None,
        description="who vouches for that: URL of its OIDC issuer (keyless, audit)",
    )
    _place = field_validator("private_key", "trusted")(place)


class Launch(Section):
    """Which processes and machines do the work; it changes no number beyond rounding."""

    processes: Annotated[int, Field(ge=1)] | Auto = Field(
        1, description="processes of a stage, a GPU for each; auto: all GPUs"
    )
    ray: str | None = Field(
        None,
        min_length=1,
        description="Ray cluster for sweep and compare: auto, or HOST:6379; null: here, one after the other",
    )
    cpus: Annotated[int, Field(ge=1)] = Field(
        1, description="cores that Ray keeps for a cell or row"
    )
    gpus: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto",
        description="GPUs that Ray keeps for a cell or row; auto: one a process, where the cluster has any",
    )


class Energy(Section):
    """Whether a run's energy is measured; nothing is sent anywhere."""

    measure: bool = Field(
        True,
        description="estimate what the whole machine takes during a run, with codecarbon",
    )
    country: str | None = Field(
        None,
        description="ISO 3166 code, such as DEU: its electricity's CO2; null: kWh alone",
    )


class Notify(Section):
    """Whom to tell how a run ended."""

    webhook: SecretStr | None = Field(
        None,
        description="address that gets a JSON object; never recorded; null: ELDER_WEBHOOK, where that is set",
    )
    events: tuple[Literal["success", "refusal", "failure"], ...] = Field(
        ("success", "refusal", "failure"), description="which ends to tell"
    )

    @field_serializer("webhook", when_used="json")
    def _never_recorded(self, _: SecretStr | None) -> None:
        """Leave the address out of all that is written: it may hold a secret, and does not change what a run makes."""
