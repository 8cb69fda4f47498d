"""The one exception tree. Errors say what happened; the edge maps them to HTTP and exit codes.

VlserveError                  (vlserve.runtime.errors)
├── ArchiveError              (vlserve.runtime.errors, with its children)
├── RequestError              (vlserve.runtime.errors)
├── SettingsError             settings or serving_config/ that cannot work
├── ExtraMissing              an optional part of the installation is not there
├── ExportError
│   ├── RecipeNotFound        no such recipe, or a file that is not one
│   ├── CheckpointMismatch    a checkpoint that is not of the recipe's family, or cannot be read
│   └── ParityFailed          the graph does not answer like the trained network
├── DataError                 training or evaluation data that cannot be used
├── TrainingError             a training run that cannot be resumed or go on
├── ControlError
│   ├── ModelNotFound
│   ├── VersionNotFound
│   ├── VersionConflict       another archive under a used version number
│   ├── NotReady              the version is not loaded and healthy
│   ├── StillServing          the version has weight, so it is not unloaded
│   ├── NothingToRollBackTo
│   ├── ReleaseUnderWay       the model is being released in steps
│   ├── NoRelease             the model is not
│   ├── LoadFailed            the engine could not load the version, or it answers its probes wrong
│   ├── EngineUnavailable
│   ├── GatewayRefused        the gateway did not take a configuration
│   ├── EvidenceInvalid       (vlserve.control.judge.evidence) impossible evidence of a rollout
│   └── StateUnreadable       (vlserve.control.rollouts.state) a rollout's kept state cannot be read
├── StressError               a load run that cannot be carried out, or was broken off
└── StackError                a process of the stack does not start, stop or answer
    ├── PortBusy
    └── StackDown             nothing answers where the stack should
"""

from vlserve.runtime.errors import ArchiveError, RequestError, VlserveError

__all__ = [
    "ArchiveError",
    "CheckpointMismatch",
    "ControlError",
    "DataError",
    "EngineUnavailable",
    "ExportError",
    "ExtraMissing",
    "GatewayRefused",
    "LoadFailed",
    "ModelNotFound",
    "NoRelease",
    "NotReady",
    "NothingToRollBackTo",
    "ParityFailed",
    "PortBusy",
    "RecipeNotFound",
    "ReleaseUnderWay",
    "RequestError",
    "SettingsError",
    "StackDown",
    "StackError",
    "StillServing",
    "StressError",
    "TrainingError",
    "VersionConflict",
    "VersionNotFound",
    "VlserveError",
]


class SettingsError(VlserveError):
    """Settings or serving_config/ that cannot work."""


class ExtraMissing(VlserveError):
    """An optional part of the installation (an extra of the package) is not there."""


class ExportError(VlserveError):
    """A trained model could not be turned into an archive."""


class RecipeNotFound(ExportError):
    """No such recipe, or a file that is not one."""


class CheckpointMismatch(ExportError):
    """A checkpoint that is not of the recipe's family, or cannot be read safely."""


class ParityFailed(ExportError):
    """The exported graph does not answer like the trained network."""


class DataError(VlserveError):
    """Training or evaluation data that cannot be used."""


class TrainingError(VlserveError):
    """A training run that cannot be resumed or go on."""


class ControlError(VlserveError):
    """The control service refuses, or cannot do, what was asked."""


class ModelNotFound(ControlError):
    """No version of a model of this name was ever registered."""


class VersionNotFound(ControlError):
    """The model has no such version."""


class VersionConflict(ControlError):
    """Another archive was registered under this model and version before."""


class NotReady(ControlError):
    """The version is not loaded and healthy."""


class TuningInvalid(ControlError):
    """What lies beside an archive as its tuning cannot be read, or is another archive's."""


class StillServing(ControlError):
    """The version has weight at the gateway, so it is not unloaded."""


class NothingToRollBackTo(ControlError):
    """There is no earlier stable version."""


class ReleaseUnderWay(ControlError):
    """The model is being released in steps, and what was asked must wait for its end."""


class NoRelease(ControlError):
    """No release of the model is under way."""


class LoadFailed(ControlError):
    """The engine could not load the version, or the version answers its probes wrong."""


class EngineUnavailable(ControlError):
    """The engine does not answer."""


class GatewayRefused(ControlError):
    """The gateway did not take a configuration."""


class StressError(VlserveError):
    """A load run that cannot be carried out, or was broken off."""


class StackError(VlserveError):
    """A process of the stack does not start, stop or answer."""


class PortBusy(StackError):
    """Another process listens on a port that the stack needs."""


class StackDown(StackError):
    """Nothing answers at the address of the stack's gateway or control service."""
