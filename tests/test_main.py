"""What users type, and the one line that they read when it is wrong.

Every mistake is reported before anything is computed or written: on standard error, in one line
that names the field or file, the value given and the choices or the remedy. The working directory
stays as it was, byte for byte. Values of fields are in test_main_fields.py.
"""

import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from command_line import (
    CONFIG,
    ROOT,
    TINY,
    assert_rejected,
    flags,
    run,
    run_fresh,
    snapshot,
    write_images,
)

from training.checkpoints import Checkpoints

CONFIG_FLAG = f"--config={CONFIG}"
INPAINT = ("--config.task.name=inpaint", "--config.task.mask=left")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (
            [CONFIG_FLAG, "--mode=check", *INPAINT, "--config.task.input=/nowhere.png"],
            r"config\.task\.input=.*nowhere\.png",
        ),
        ([], r"give a configuration and a mode.*modes are: train, eval, sample"),
        (["--mode=check"], r"give a configuration and a mode"),
        (
            [CONFIG_FLAG, "--mode=check", "--config.sampling=ddim"],
            r"section.*--config\.sampling\.name=ddim",
        ),
        ([CONFIG_FLAG, "--mode=check", "--config.optim.lr=None"], r"must have a value.*0\.0002"),
        (
            [CONFIG_FLAG, "--mode=check", "--workdir=s3://bucket/run"],
            r"s3://bucket/run: .*gs://BUCKET/PATH",
        ),
        ([f"--config={'a' * 500}", "--mode=check"], "is not a file"),
        (["--config=configs/vp.py", "--mode=check"], r"--config='configs/vp\.py'.*configs/vp_dig"),
        ([CONFIG_FLAG], "--mode"),
        ([CONFIG_FLAG, "--mode=test"], "mode.*test.*train.*eval.*sample.*check"),
        ([CONFIG_FLAG, "--mode=check", "--wokdir=x"], "wokdir.*workdir"),
        ([CONFIG_FLAG, "--mode=check", "--config.sampels=3"], r"config\.sampels.*sampling"),
        ([CONFIG_FLAG, "--mode=check", "--config.optim.rate=3"], r"optim\.rate.*lr, .*warmup"),
        ([CONFIG_FLAG, "--mode=check", "--config.optim.lr.x=3"], r"config\.optim\.lr"),
        ([CONFIG_FLAG, "--mode=check", "--config.optim.rate", "3"], r"optim\.rate.*lr, .*warmup"),
        ([CONFIG_FLAG, "--mode=check", "--config.optim=3"], r"config\.optim"),
        (
            [CONFIG_FLAG, "--mode=eval", "--checkpoint=3"],
            r"--checkpoint is only valid with --mode=sample.*, not eval.*eval\.checkpoints",
        ),
        (
            [CONFIG_FLAG, "--mode=train", "--num_samples=3"],
            "--num_samples is only valid with --mode=sample, check, not train",
        ),
        (
            [CONFIG_FLAG, "--mode=sample", "--init_from=runs/old"],
            "--init_from is only valid with --mode=train, check, not sample",
        ),
        (
            [CONFIG_FLAG, "--mode=check", "--workdir=/nowhere", "--init_from=/nowhere/old"],
            r"config\.training\.init_from='/nowhere/old' holds no checkpoint; give RUN or RUN:STEP",
        ),
        (
            [CONFIG_FLAG, "--mode=check", "--init_from=a", "--config.training.init_from=b"],
            r"give --init_from or --config\.training\.init_from, not both",
        ),
        ([CONFIG_FLAG, "--mode=check", "extra"], "extra: not expected here"),
        ([CONFIG_FLAG, "--mode=sample", "--num_samples=x"], "num_samples.*x"),
        *(
            (
                [CONFIG_FLAG, f"--mode={mode}", f"--num_samples={10**12}"],
                "num_samples.*GB of memory",
            )
            for mode in ("sample", "check")
        ),
        ([CONFIG_FLAG, "--mode=sample", "--num_samples=0", "--workdir=/nowhere"], "num_samples=0"),
    ],
    ids=lambda v: " ".join(v[:2]) if isinstance(v, list) else "",
)
def test_misspelled_command_line(arguments, pattern):
    assert_rejected(run(*arguments), pattern)


@pytest.mark.slow
def test_values_may_follow_their_flags():
    call = run("--config", CONFIG, "--mode", "check", "--config.optim.lr", "0.5")
    assert call.status == 0, call.stderr
    assert '"lr": 0.5' in call.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("def get_config(:\n", "SyntaxError.*line 1"),
        ("import nowhere\n", "ModuleNotFoundError.*nowhere"),
        ("def get_config():\n    return undefined\n", "NameError.*undefined"),
        (
            "def get_config():\n    raise AttributeError('two\\nlines')\n",
            "AttributeError: two lines",
        ),
        ("config = 3\n", "get_config"),
        ("def get_config():\n    return 3\n", "ConfigDict"),
    ],
    ids=["syntax", "import", "name", "attribute", "missing", "type"],
)
def test_configuration_file_that_fails(tmp_path, content, pattern):
    file = tmp_path / "broken.py"
    file.write_text(content)
    assert_rejected(run(f"--config={file}", "--mode=check"), rf"{file}.*{pattern}")


@pytest.mark.slow
def test_fields_of_other_choices_in_a_file_are_left_unused(tmp_path):
    file = tmp_path / "changed.py"
    file.write_text(
        "from configs import vp_digits\n\n\n"
        "def get_config():\n"
        "    config = vp_digits.get_config()\n"
        "    config.sde.sigma_max = 3.0\n"
        "    return config\n"
    )
    call = run(f"--config={file}", "--mode=check")
    assert call.status == 0, call.stderr
    assert '"sigma_max": null' in call.stdout


@pytest.mark.slow
def test_none_unsets_a_field_that_has_no_value_by_default(tmp_path):
    call = run(*flags("check", tmp_path, TINY | {"sampling.variant": "None"}))
    assert call.status == 0, call.stderr
    call = run(*flags("check", tmp_path, TINY), "--config.sampling.steps=None")
    assert "1001 network evaluations" in call.stdout or "1000 network" in call.stdout, call


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.3, 0.6])
def test_interrupted_while_libraries_are_imported_is_one_line(pause):
    command = [sys.executable, "main.py", CONFIG_FLAG, "--mode=check"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert "Traceback" not in said, said
    assert process.returncode in (130, -signal.SIGINT), said


@pytest.mark.slow
def test_fresh_interpreters_report_the_same(tmp_path):
    """The same mistakes as users make them, one of each origin."""
    run_flags = flags("train", tmp_path / "run", TINY | {"sde.name": "vpp"})
    assert_rejected(run_fresh(*run_flags), "config.sde.name='vpp'")
    assert_rejected(run_fresh("--mode=check"), "give a configuration and a mode")
    assert_rejected(run_fresh(CONFIG_FLAG, "--mode=check", "--config.x=1"), "config.x")
    assert not (tmp_path / "run").exists()
    helped = run_fresh("--help")
    assert "--workdir" in helped.stdout
    assert "Traceback" not in helped.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval", "sample"])
@pytest.mark.parametrize(
    "content", ["{", "[]", "3", "\xff"], ids=["cut", "list", "number", "bytes"]
)
def test_damaged_config_json(tmp_path, mode, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    before = snapshot(tmp_path)
    call = run(*flags(mode, tmp_path))
    assert_rejected(call, rf"{tmp_path}/config\.json is damaged.*another --workdir")
    assert snapshot(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval", "sample"])
def test_workdir_that_is_a_file(tmp_path, mode):
    file = tmp_path / "file"
    file.write_text("mine")
    assert_rejected(run(*flags(mode, file)), rf"--workdir={file} is a file; give a folder")
    assert_rejected(run(*flags(mode, file / "run")), f"{file}")
    assert file.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "sample"])
def test_nothing_to_read(tmp_path, mode):
    workdir = tmp_path / "run"
    call = run(*flags(mode, workdir))
    assert_rejected(call, "no checkpoint in .*--mode=train")
    assert str(workdir) in call.stderr
    assert not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--config.eval.checkpoints=(99,)"),
        ("eval", "--config.eval.checkpoints=(10,99)"),
        ("sample", "--checkpoint=99"),
    ],
)
def test_checkpoint_that_does_not_exist(finished, arguments):
    before = snapshot(finished)
    mode, flag = arguments
    call = run(*flags(mode, finished), flag)
    assert_rejected(call, r"checkpoints/99 .*no such checkpoint.*on disk: 10, 20, 30")
    assert snapshot(finished) == before


@pytest.mark.slow
def test_run_with_another_configuration(finished):
    before = snapshot(finished)
    other = TINY | {"optim.lr": 0.5, "model.dropout": 0.25}
    for mode in ("train", "eval", "sample"):
        call = run(*flags(mode, finished, other))
        assert_rejected(call, r"config\.model\.dropout was 0\.0, is 0\.25\. Give")
    assert snapshot(finished) == before


@pytest.mark.slow
def test_data_that_do_not_fit(tmp_path):
    images = write_images(tmp_path / "images.npz", 8, 2, size=4, channels=3)
    fields = TINY | {"data.name": str(images), "data.channels": 3}
    call = run(*flags("train", tmp_path / "run", fields))
    assert_rejected(call, r"config\.data\.image_size=8, but .*images.npz.* is 4x4 pixels")
    images.write_bytes(images.read_bytes()[:200])
    assert_rejected(
        run(*flags("train", tmp_path / "run", fields)), r"images\.npz.*damaged or incomplete"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_workdir_that_may_not_be_written():
    """/proc takes no folders, not even from root."""
    call = run(*flags("train", "/proc/scoresde/run"))
    assert_rejected(call, "/proc/scoresde")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"), [("vp_digits.py", ""), ("vp_cifar10.py:ddpm", "35,218,947")]
)
def test_check_plans_a_configuration(tmp_path, name, parameters):
    workdir = tmp_path / "run"
    call = run(f"--config=configs/{name}", "--mode=check", f"--workdir={workdir}")
    assert call.status == 0, call.stderr
    assert re.search(rf"^parameters +{parameters}", call.stdout, re.MULTILINE)
    assert re.search(r"^train step +about \d+\.\d\d GB", call.stdout, re.MULTILINE)
    assert not workdir.exists()


@pytest.mark.slow
def test_check_of_a_large_network_allocates_nothing():
    """129.1M parameters are 516 MB, their training state 2.1 GB."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print('KB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    arguments = [
        "--config=configs/ve_cifar10.py",
        "--mode=check",
        "--config.model.features=512",
        "--config.model.channel_multipliers=(2,)",
        "--config.model.blocks_per_resolution=1",
        "--config.model.attention_resolutions=()",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, "main.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search("parameters +129,070,595", done.stdout)
    assert int(done.stdout.split()[-1]) < 400_000


@pytest.mark.slow
def test_prepare_without_work_and_without_a_name(tmp_path):
    call = run(CONFIG_FLAG, "--mode=prepare")
    assert call.status == 0, call.stderr
    assert_rejected(run(CONFIG_FLAG, "--mode=prepare", "--config.data.name=digit"), "digit")


@pytest.mark.slow
def test_copy_of_a_run_is_a_run(tmp_path, finished):
    """Nothing in a working directory knows where it lies."""
    workdir = shutil.copytree(finished, tmp_path / "moved")
    call = run(*flags("train", workdir))
    assert call.status == 0
    assert f"{workdir} is trained: step 30 of 30" in call.stdout
    assert Checkpoints(workdir / "checkpoints").steps() == (10, 20, 30)


@pytest.mark.slow
def test_starting_imports_no_library_that_only_some_commands_need():
    """They take from a tenth of a second to seconds, in every command."""
    some = {"diffrax", "equinox", "lineax", "matplotlib", "orbax", "scipy", "sklearn"}
    some |= {"tensorboardX", "tensorflow", "torch", "wandb"}
    program = f"import sys, run_lib; print(*sorted({some!r} & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "\n"
