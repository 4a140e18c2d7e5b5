"""The frame/slot loop and what it keeps: one LightningModule drives any cacher with any allocator."""
