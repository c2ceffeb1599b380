"""BACL on video, sound and text: VAST-27M (arXiv 2305.18500), its JSON annotations (clip_id, vast_cap, ...) and <clip_id>.mp4 in a folder.

Set data.path to the JSON file and data.clips.folder to the folder of the clips. The sound is the clips' own, and a clip without a sound
track lacks it; where sounds lie apart, data.clips.audio names them ("{clip_id}.wav").
"""

from ml_collections import ConfigDict

from configs import webvid10m_bacl


def get_config() -> ConfigDict:
    config = webvid10m_bacl.get_config()
    config.data.anchors = ("video", "audio")  # what is paired with the text
    config.data.caption_column = "vast_cap"  # column of the caption, of vision, sound and subtitles together
    config.data.id_column = "clip_id"  # column of the anchor's key
    config.data.clips.video = "{clip_id}.mp4"  # file of a row, relative to data.clips.folder
    config.data.clips.audio = "{clip_id}.mp4"  # file of its sound
    config.data.context_length = 77  # tokens a caption, BOS and EOS included
    config.data.audio.seconds = 10.0  # of a longer file a part
    config.model.audio.width = 768  # channels of the token features
    config.model.audio.depth = 12  # transformer blocks
    config.model.audio.heads = 12  # attention heads
    config.objective.weights = (1.0, 0.5)  # of the terms of video and of sound
    config.train.keep_best = "v2t_R@1"  # the checkpoint kept beside the newest
    return config
