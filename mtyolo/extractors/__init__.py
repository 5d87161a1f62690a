"""Stand-in until the real ones land."""
from torch import nn
import torch
from mtyolo.structures import Level
EXTRACTORS = {}
class _Given(nn.Module):
    def __init__(self, levels):
        super().__init__(); self.levels=tuple(Level(s,c) for s,c in sorted(levels.items())); self.identity={}
class _Timm(nn.Module):
    def __init__(self, c, strides):
        super().__init__()
        import timm
        from safetensors.torch import load_file
        self.m=timm.create_model(c.name.removeprefix('timm/'), features_only=True)
        if c.weights.endswith('safetensors'): self.m.load_state_dict(load_file(c.weights), strict=False)
        self.levels=tuple(Level(i['reduction'],i['num_chs']) for i in self.m.feature_info.get_dicts() if i['reduction'] in strides); self.identity={}
    def forward(self, x):
        f=self.m((x-0.5)/0.5); return {i['reduction']:y for i,y in zip(self.m.feature_info.get_dicts(), f) if any(l.stride==i['reduction'] for l in self.levels)}
def make_extractor(config, wanted_strides, registry=EXTRACTORS, *, trust=False):
    return _Given(config.levels) if config.name=="features" else _Timm(config, wanted_strides)
