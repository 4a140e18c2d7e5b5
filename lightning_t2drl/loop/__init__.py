"""The frame/slot loop: one LightningModule drives any cacher with any allocator."""
