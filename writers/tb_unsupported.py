"""The methods of torch's SummaryWriter that are not supported yet: each says so, none logs nothing in silence."""
# ruff: noqa: ARG002 - the arguments are torch's, so that the message comes and not a TypeError

from typing import Any, NoReturn

_ANOTHER_WAY = (
    ": build the summary with torch.utils.tensorboard.summary and pass it to "
    "writer._get_file_writer().add_summary(summary, global_step), which is"
)


def _refuse(method: str, instead: str = _ANOTHER_WAY) -> NoReturn:
    raise NotImplementedError(f"SummaryWriter.{method} is not supported by spoolagent yet{instead}")


class Unsupported:
    """Signatures as torch's; every call raises NotImplementedError."""

    def add_audio(
        self,
        tag: Any,
        snd_tensor: Any,
        global_step: Any = None,
        sample_rate: Any = 44100,
        walltime: Any = None,
    ) -> None:
        """Not supported yet."""
        _refuse("add_audio")

    def add_custom_scalars(self, layout: Any) -> None:
        """Not supported yet."""
        _refuse("add_custom_scalars")

    def add_custom_scalars_marginchart(
        self, tags: Any, category: Any = "default", title: Any = "untitled"
    ) -> None:
        """Not supported yet."""
        _refuse("add_custom_scalars_marginchart")

    def add_custom_scalars_multilinechart(
        self, tags: Any, category: Any = "default", title: Any = "untitled"
    ) -> None:
        """Not supported yet."""
        _refuse("add_custom_scalars_multilinechart")

    def add_embedding(
        self,
        mat: Any,
        metadata: Any = None,
        label_img: Any = None,
        global_step: Any = None,
        tag: Any = "default",
        metadata_header: Any = None,
    ) -> None:
        """Not supported yet."""
        _refuse("add_embedding", "")

    def add_graph(
        self, model: Any, input_to_model: Any = None, verbose: Any = False, use_strict_trace: Any = True
    ) -> None:
        """Not supported yet."""
        _refuse("add_graph", "")

    def add_image_with_boxes(
        self,
        tag: Any,
        img_tensor: Any,
        box_tensor: Any,
        global_step: Any = None,
        walltime: Any = None,
        rescale: Any = 1,
        dataformats: Any = "CHW",
        labels: Any = None,
    ) -> None:
        """Not supported yet."""
        _refuse("add_image_with_boxes")

    def add_mesh(
        self,
        tag: Any,
        vertices: Any,
        colors: Any = None,
        faces: Any = None,
        config_dict: Any = None,
        global_step: Any = None,
        walltime: Any = None,
    ) -> None:
        """Not supported yet."""
        _refuse("add_mesh")

    def add_onnx_graph(self, prototxt: Any) -> None:
        """Not supported yet."""
        _refuse("add_onnx_graph", "")

    def add_pr_curve(
        self,
        tag: Any,
        labels: Any,
        predictions: Any,
        global_step: Any = None,
        num_thresholds: Any = 127,
        weights: Any = None,
        walltime: Any = None,
    ) -> None:
        """Not supported yet."""
        _refuse("add_pr_curve")

    def add_pr_curve_raw(
        self,
        tag: Any,
        true_positive_counts: Any,
        false_positive_counts: Any,
        true_negative_counts: Any,
        false_negative_counts: Any,
        precision: Any,
        recall: Any,
        global_step: Any = None,
        num_thresholds: Any = 127,
        weights: Any = None,
        walltime: Any = None,
    ) -> None:
        """Not supported yet."""
        _refuse("add_pr_curve_raw")

    def add_tensor(self, tag: Any, tensor: Any, global_step: Any = None, walltime: Any = None) -> None:
        """Not supported yet."""
        _refuse("add_tensor")

    def add_video(
        self, tag: Any, vid_tensor: Any, global_step: Any = None, fps: Any = 4, walltime: Any = None
    ) -> None:
        """Not supported yet."""
        _refuse("add_video")
