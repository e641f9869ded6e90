"""Damaged and hostile ISMRMRD files are refused in one line that names the file; nothing personal leaves them."""

import os
import warnings

import h5py
import numpy as np
import pytest
from mrd_files import header, line, lines, write

from rsdmri.data.ismrmrd import read_ismrmrd
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

CANARY = "CANARY19600101"
KSPACE = numpy_generator("hostile").standard_normal((2, 16, 12)).astype(np.complex64)
TEXT = header((16, 12, 1))


def good(path, text=TEXT):
    return write(path, text, lines(KSPACE))


def edited(path, change):
    """A good file whose records ``change`` has edited."""
    with h5py.File(good(path), "r+") as file:
        records = file["dataset/data"][()]
        change(records)
        file["dataset/data"][...] = records


def head_field(name, value):
    def build(path):
        edited(path, lambda records: records["head"][name].__setitem__(slice(None), value))

    return build


def not_hdf5(path):
    path.write_bytes(CANARY.encode() * 500)


def truncated(path):
    os.truncate(good(path), path.stat().st_size // 2)


def no_group(path):
    with h5py.File(path, "w") as file:
        file["kspace"] = KSPACE


def group_is_array(path):
    with h5py.File(path, "w") as file:
        file["dataset"] = KSPACE


def victim(path):
    return good(path.with_name("victim.h5"), header((16, 12, 1), extra=f"<!-- {CANARY} -->"))


def external_group(path):
    with h5py.File(path, "w") as file:
        file["dataset"] = h5py.ExternalLink(str(victim(path)), "dataset")


def soft_group(path):
    with h5py.File(path, "w") as file:
        file["dataset"] = h5py.SoftLink("/dataset")


def external_data(path):
    with h5py.File(good(path), "r+") as file:
        del file["dataset/data"]
        file["dataset/data"] = h5py.ExternalLink(str(victim(path)), "dataset/data")


def external_header(path):
    with h5py.File(good(path), "r+") as file:
        del file["dataset/xml"]
        file["dataset/xml"] = h5py.ExternalLink(str(victim(path)), "dataset/xml")


def no_data(path):
    with h5py.File(good(path), "r+") as file:
        del file["dataset/data"]
        file["dataset/evil\x1b[31m"] = KSPACE


def data_of(array):
    def build(path):
        with h5py.File(good(path), "r+") as file:
            del file["dataset/data"]
            file["dataset/data"] = array

    return build


def no_readouts(path):
    write(path, TEXT, lines(KSPACE))
    with h5py.File(path, "r+") as file:
        file["dataset/data"].resize(0, axis=0)


def without_field(path):
    with h5py.File(good(path), "r+") as file:
        kind = file["dataset/data"].dtype
        head = np.dtype([(name, kind["head"][name]) for name in kind["head"].names if name != "flags"])
        del file["dataset/data"]
        kept = np.dtype([("head", head), ("traj", kind["traj"]), ("data", kind["data"])])
        file["dataset"].create_dataset("data", (3,), kept)


def other_type_of_field(path):
    with h5py.File(good(path), "r+") as file:
        kind = file["dataset/data"].dtype
        fields = [(name, "<f8" if name == "flags" else kind["head"][name]) for name in kind["head"].names]
        del file["dataset/data"]
        kept = np.dtype([("head", np.dtype(fields)), ("traj", kind["traj"]), ("data", kind["data"])])
        file["dataset"].create_dataset("data", (3,), kept)


def double_samples(path):
    with h5py.File(good(path), "r+") as file:
        kind = file["dataset/data"].dtype
        del file["dataset/data"]
        kept = np.dtype([("head", kind["head"]), ("traj", kind["traj"]), ("data", h5py.vlen_dtype(np.float64))])
        file["dataset"].create_dataset("data", (3,), kept)


def sparse(path):
    with h5py.File(good(path), "r+") as file:
        kind = file["dataset/data"].dtype
        del file["dataset/data"]
        file["dataset"].create_dataset("data", (1 << 24,), kind, chunks=(1024,))


def short_samples(path):
    edited(path, lambda records: records["data"].__setitem__(3, np.zeros(7, np.float32)))


def counters(path):
    edited(path, lambda records: records["head"]["idx"]["slice"].__setitem__(slice(None), np.arange(12) * 5000))


def dtd(path):
    good(path, f'<!DOCTYPE a [<!ENTITY b "{CANARY}">]>' + TEXT[TEXT.index("<ismrmrdHeader") :])


def laughs(path):
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "lol"}">' for i in range(10))
    good(path, f"<!DOCTYPE a [{entities}]><ismrmrdHeader>&a9;</ismrmrdHeader>")


def long_header(path):
    good(path, TEXT + " " * 1_000_001)


def header_of_numbers(path):
    with h5py.File(good(path), "r+") as file:
        del file["dataset/xml"]
        file["dataset/xml"] = np.arange(5)


FILES = {
    "missing": (lambda path: None, "no such file"),
    "not HDF5": (not_hdf5, "not an HDF5 file"),
    "truncated": (truncated, "cut short"),
    "no group": (no_group, r"no group 'dataset' \(it holds kspace\)"),
    "group is an array": (group_is_array, "'dataset' is an array"),
    "external group": (external_group, "external link"),
    "soft link loop": (soft_group, "soft link"),
    "external data": (external_data, "external link"),
    "external header": (external_header, "external link"),
    "no data": (no_data, r"no readouts 'data' in 'dataset' \(it holds evil\?\[31m, xml\)"),
    "plain numbers": (data_of(np.arange(5.0)), "does not hold readouts"),
    "data is text": (data_of(CANARY), "does not hold readouts"),
    "no readouts": (no_readouts, "holds 0 readouts"),
    "field missing": (without_field, "no field 'flags'"),
    "field of another type": (other_type_of_field, "'flags' of its readouts is float64"),
    "double precision": (double_samples, "does not hold readouts of float32"),
    "size bomb": (sparse, "not a plausible scan"),
    "samples missing": (short_samples, "readout 3 stores 7 numbers where its head declares 2 coils of 16"),
    "more samples declared": (head_field("number_of_samples", 65535), "more than the file's"),
    "more coils declared": (head_field("active_channels", 65535), "more than the file's"),
    "coils by samples": (head_field("active_channels", 4), "stores 64 numbers where its head declares 4 coils"),
    "slices by thousands": (counters, "sampled at different lines"),
    "centre far away": (head_field("center_sample", 60000), "do not fit the encoded matrix"),
    "all flags": (head_field("flags", (1 << 64) - 1), "none of its 12 readouts is imaging"),
    "DTD": (dtd, "declares a DTD"),
    "billion laughs": (laughs, "declares a DTD"),
    "long header": (long_header, "1,000,"),
    "header of numbers": (header_of_numbers, "not one text"),
}


@pytest.mark.parametrize("name", FILES)
def test_refused(tmp_path, name):
    build, words = FILES[name]
    path = tmp_path / "a.h5"
    build(path)
    with pytest.raises(InputError, match=words) as caught:
        read_ismrmrd(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert CANARY not in message


def test_what_a_hostile_file_may_hold_unread(tmp_path):
    """A data set nobody asks for, images, waveforms: not looked at, whatever they are."""
    path = good(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["dataset/image_0"] = h5py.ExternalLink(str(victim(path)), "dataset")
        file["dataset/waveforms"] = h5py.SoftLink("/dataset/waveforms")
    np.testing.assert_array_equal(read_ismrmrd(path).kspace[0], KSPACE)


PERSON = ("DOE^JOHN", "19600101", "MRN778899", "Dr. House")


def test_nothing_personal_leaves_the_file(tmp_path):
    name, born, number, physician = PERSON
    before = (
        f"<subjectInformation><patientName>{name}</patientName><patientID>{number}</patientID>"
        f"<patientBirthdate>{born}</patientBirthdate></subjectInformation>"
        f"<studyInformation><studyDate>{born}</studyDate><referringPhysicianName>{physician}</referringPhysicianName>"
        f"<accessionNumber>{number}</accessionNumber></studyInformation>"
        f"<measurementInformation><patientPosition>HFS</patientPosition><protocolName>{name}</protocolName>"
        f"</measurementInformation><acquisitionSystemInformation><systemVendor>{name}</systemVendor>"
        f"<stationName>{physician}</stationName><deviceID>{number}</deviceID></acquisitionSystemInformation>"
    )
    extra = (
        f"<sequenceParameters><TR>{name}</TR><TE>5</TE><sequence_type>{number}</sequence_type></sequenceParameters>"
        f"<userParameters><userParameterString><name>{name}</name><value>{born}</value></userParameterString>"
        f"</userParameters>"
    )
    plain = header((16, 12, 1), before=before, extra=extra)
    broken = plain.replace("<center>6</center>", f"<center>{name}</center>")
    for text in (plain, broken, plain.replace("cartesian", name), plain.replace("<x>16</x>", f"<x>{number}</x>")):
        readouts = lines(KSPACE)
        for one in readouts:
            one.user_int[:] = [19600101] * 8
            one.user_float[:] = [778899.0] * 8
            one.measurement_uid = 778899
        path = tmp_path / "a.h5"
        write(path, text, readouts)
        with h5py.File(path, "r+") as file:
            file.attrs["patient"] = file["dataset"].attrs["patient"] = name
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                scan = read_ismrmrd(path)
                said = [repr(scan), *scan.warnings, repr(scan.header), repr(scan.geometry), scan.acquisition, scan.name]
            except InputError as error:
                said = [str(error)]
        said += [str(one.message) for one in caught]
        assert not [(word, text) for text in said for word in (*PERSON, "778899") if word in text]


def test_an_empty_readout_is_left_out(tmp_path):
    one = line(KSPACE[:, :, 0], 3)
    one.resize(0, 2)
    scan = read_ismrmrd(write(tmp_path / "a.h5", TEXT, [one, *lines(KSPACE)]))
    np.testing.assert_array_equal(scan.kspace[0], KSPACE)
    assert "1 empty" in scan.warnings[0]
