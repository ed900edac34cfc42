"""What every probe keeps; third parties' probes can subclass it."""

import pytest

from scheduler.host.reading import Probe, Reading


class ProbeContract:
    """Subclasses give a fixture `probe` that sees at least one device."""

    def test_devices_have_distinct_uuids_and_sizes(self, probe: Probe) -> None:
        devices = probe.devices()
        assert devices
        assert len({device.uuid for device in devices}) == len(devices)
        assert all(device.total_bytes > 0 for device in devices)
        assert devices == probe.devices()

    def test_a_reading_is_within_the_device(self, probe: Probe) -> None:
        for device in probe.devices():
            reading = probe.read(device.uuid)
            assert reading.uuid == device.uuid
            assert reading.total_bytes == device.total_bytes
            assert reading.used_bytes is not None
            assert 0 <= reading.used_bytes <= reading.total_bytes

    def test_an_unknown_device_is_an_error(self, probe: Probe) -> None:
        with pytest.raises(KeyError):
            probe.read("no-such-device")

    def test_unknown_is_not_free(self, probe: Probe) -> None:
        device = probe.devices()[0]
        snapshot = Reading(device.uuid, device.total_bytes, None, "no answer").with_processes(())
        assert not snapshot.admits(0)
        assert snapshot.external_bytes == device.total_bytes
