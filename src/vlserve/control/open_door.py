"""What a control service needs before other machines may reach it, and any server before it may
speak TLS."""

from vlserve.control.named_keys import NamedKeys
from vlserve.errors import SettingsError
from vlserve.settings import Settings
from vlserve.settings_values import is_loopback


def refuse_open_door(settings: Settings) -> None:
    """Raise SettingsError for certificates that cannot be used, and for an address beyond loopback
    without a named key.

    Raises:
        NamedKeysError: the file of named keys cannot be read.
    """
    for files in (settings.gateway_tls, settings.control_tls):
        if files is not None:
            files.refuse_unusable()
    if (
        not is_loopback(settings.control.host)
        and not NamedKeys(settings.model_store).any_in_force()
    ):
        raise SettingsError(
            f"control.host {settings.control.host} is not loopback, and there is no named key, "
            "without which nobody could call from another machine: `vlserve keys add NAME --role "
            "read` makes one, or keep the control service on 127.0.0.1"
        )
