"""The two training configs in miniature, with everything on that can be on together."""

STAGE_ONE = """
data: {{kind: folder, path: "{data}", size: 16, flip: true}}
autoencoder:
  network: {{widths: [8, 8], norm_groups: 4}}
  bottleneck: {{channels: 2}}
objective:
  perceptual: {{backbone: alex, weights_file: "{backbone}", size: 32}}
  discriminator: {{width: 8, layers: 2, start: 0.5, warmup: 0.1, lecam: 0.1, r1: 0.1, optim: {{warmup: 2}}}}
  equivariance: {{}}
  latent_corruption: {{kind: interpolation, strength: 0.5}}
  corruption: {{kind: mask, fraction: [0, 0.3], p_clean: 0.1}}
optim: {{lr: 2e-3, warmup: 2}}
run: {{steps: 6, batch_size: 8, log_every: 2, checkpoint_every: 3, sample_every: 6, precision: fp32}}
"""
STAGE_TWO = """
denoiser:
  network: {widths: [8, 16], blocks: 1, attention: [1], head_channels: 8, dropout: 0.1}
  skip: {kind: gaussian, rank: 8}
optim: {lr: 2e-3, warmup: 2}
run: {steps: 6, batch_size: 8, log_every: 2, checkpoint_every: 3, sample_every: 6, precision: fp32}
"""
