"""The methods of SummaryWriter whose summaries are built by the caller's own torch, then logged as they are.

torch is the caller's, and is imported by the first of these calls only. It needs tensorboard beside it for them,
as it did before the import line was changed; without it they raise NotImplementedError.
"""

import os
from collections.abc import Sequence
from typing import Any

from spoolagent.writers.run import Run, optional
from spoolagent.writers.tb_files import FileWriter, torch_module


class Plugins:
    """Signatures and errors as torch's."""

    log_dir: Any
    _run: Run
    _context: dict[str, str] | None
    _projector: Any = None

    def _get_file_writer(self) -> FileWriter:
        raise NotImplementedError

    def _log(
        self, kind: str, fields: dict[str, Any], global_step: Any, walltime: Any, blob: bytes | None = None
    ) -> None:
        raise NotImplementedError

    def _log_built(
        self,
        method: str,
        maker: str,
        given: Sequence[Any],
        step: Any = None,
        walltime: Any = None,
        **how: Any,
    ) -> None:
        """Logs the Summary that torch's function `maker` builds."""
        made = getattr(torch_module(method, "summary"), maker)(*given, **how)
        self._get_file_writer().add_summary(made, step, walltime)

    def add_tensor(self, tag: Any, tensor: Any, global_step: Any = None, walltime: Any = None) -> None:
        """Logs a tensor as it is."""
        self._log_built("add_tensor", "tensor_proto", (tag, tensor), global_step, walltime)

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
        """Logs an image with boxes (x0, y0, x1, y1 in pixels) drawn on it."""
        if isinstance(labels, str):
            labels = [labels]
        if labels is not None and len(labels) != box_tensor.shape[0]:
            labels = None
        how = {"rescale": rescale, "dataformats": dataformats, "labels": labels}
        given = (tag, img_tensor, box_tensor)
        self._log_built("add_image_with_boxes", "image_boxes", given, global_step, walltime, **how)

    def add_video(
        self, tag: Any, vid_tensor: Any, global_step: Any = None, fps: Any = 4, walltime: Any = None
    ) -> None:
        """Logs frames (batch, time, channels, height, width) as a GIF; needs moviepy, as with torch."""
        self._log_built("add_video", "video", (tag, vid_tensor, fps), global_step, walltime)

    def add_audio(
        self,
        tag: Any,
        snd_tensor: Any,
        global_step: Any = None,
        sample_rate: Any = 44100,
        walltime: Any = None,
    ) -> None:
        """Logs a mono sound, samples in -1..1, as WAV."""
        given = (tag, snd_tensor)
        self._log_built("add_audio", "audio", given, global_step, walltime, sample_rate=sample_rate)

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
        """Logs point clouds or meshes."""
        given = (tag, vertices, colors, faces, config_dict)
        self._log_built("add_mesh", "mesh", given, global_step, walltime)

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
        """Logs precision over recall of binary labels and predicted probabilities."""
        make_np = torch_module("add_pr_curve", "_convert_np").make_np
        given = (tag, make_np(labels), make_np(predictions), num_thresholds, weights)
        self._log_built("add_pr_curve", "pr_curve", given, global_step, walltime)

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
        """Logs precision over recall, given by its counts at each threshold."""
        counts = (true_positive_counts, false_positive_counts, true_negative_counts, false_negative_counts)
        given = (tag, *counts, precision, recall, num_thresholds, weights)
        self._log_built("add_pr_curve_raw", "pr_curve_raw", given, global_step, walltime)

    def add_custom_scalars(self, layout: Any) -> None:
        """Logs which scalars TensorBoard is to draw together: {category: {title: ["Multiline", tags]}}."""
        self._log_built("add_custom_scalars", "custom_scalars", (layout,))

    def add_custom_scalars_multilinechart(
        self, tags: Any, category: Any = "default", title: Any = "untitled"
    ) -> None:
        """One chart of several scalars."""
        self.add_custom_scalars({category: {title: ["Multiline", tags]}})

    def add_custom_scalars_marginchart(
        self, tags: Any, category: Any = "default", title: Any = "untitled"
    ) -> None:
        """One chart of a scalar between two others. Raises AssertionError unless there are three tags."""
        if len(tags) != 3:
            raise AssertionError(f"expected 3 tags, got {len(tags)}")
        self.add_custom_scalars({category: {title: ["Margin", tags]}})

    # -- graphs --------------------------------------------------------------------------------------------

    def add_graph(
        self, model: Any, input_to_model: Any = None, verbose: Any = False, use_strict_trace: Any = True
    ) -> None:
        """Traces the model with this input and logs its graph."""
        make = torch_module("add_graph", "_pytorch_graph").graph
        self._get_file_writer().add_graph(make(model, input_to_model, verbose, use_strict_trace))

    def add_onnx_graph(self, prototxt: Any) -> None:
        """Logs the graph of a model in an ONNX file; needs the package onnx."""
        load = torch_module("add_onnx_graph", "_onnx_graph").load_onnx_graph
        self._get_file_writer().add_onnx_graph(load(prototxt))

    @staticmethod
    def _encode(rawstr: str) -> str:
        """A tag as the name of a directory, as torch makes it: percent-escaped."""
        for char in "%/\\":
            rawstr = rawstr.replace(char, f"%{ord(char):02x}")
        return rawstr

    # -- embeddings ----------------------------------------------------------------------------------------

    def add_embedding(
        self,
        mat: Any,
        metadata: Any = None,
        label_img: Any = None,
        global_step: Any = None,
        tag: Any = "default",
        metadata_header: Any = None,
    ) -> None:
        """Logs points (rows of `mat`) for the projector, with labels and small images.

        As with torch they are files beside the event file: written to a temporary directory here, kept in the
        spool, and put into the run's directory by the receiver.
        """
        torch = torch_module("add_embedding", "_embedding")
        mat = torch_module("add_embedding", "_convert_np").make_np(mat)
        step = 0 if global_step is None else global_step
        subdir = f"{str(step).zfill(5)}/{self._encode(tag)}"

        def make(folder: str) -> None:
            inside = os.path.join(folder, subdir)
            os.makedirs(inside)
            _write_embedding(torch, inside, mat, metadata, label_img, metadata_header)
            if self._projector is None:
                self._projector = torch_module("add_embedding", "writer").ProjectorConfig()
            info = torch.get_embedding_info(metadata, label_img, subdir, step, tag)
            self._projector.embeddings.extend([info])
            torch.write_pbtxt(folder, str(self._projector))
            self._get_file_writer()

        fields = {"kind": "tensorboard", **optional(context=self._context)}
        self._run.log_made("artifact", "embedding", make, fields)


def _write_embedding(
    torch: Any, folder: str, mat: Any, metadata: Any, label_img: Any, metadata_header: Any
) -> None:
    if metadata is not None:
        if mat.shape[0] != len(metadata):
            raise AssertionError("#labels should equal with #data points")
        torch.make_tsv(metadata, folder, metadata_header=metadata_header)
    if label_img is not None:
        if mat.shape[0] != label_img.shape[0]:
            raise AssertionError("#images should equal with #data points")
        torch.make_sprite(label_img, folder)
    if mat.ndim != 2:
        raise AssertionError("mat should be 2D, where mat.size(0) is the number of data points")
    torch.make_mat(mat, folder)
