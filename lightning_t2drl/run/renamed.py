"""Names that have changed since an earlier release; a user who types the old one is told the new one."""

KEYS = {
    "allocator.denoising_steps": "allocator.diffusion.steps",
    "allocator.schedule": "allocator.diffusion.schedule",
    "allocator.beta_min": "allocator.diffusion.beta_min",
    "allocator.beta_max": "allocator.diffusion.beta_max",
    "allocator.prediction": "allocator/diffusion (sample or epsilon)",
    "allocator.saturation_penalty": "allocator.diffusion.saturation_penalty",
    "allocator.head_scale": "allocator.head.scale",
    "allocator.step_scale": "allocator.head.step_scale",
    "cacher.infeasible": "cacher.infeasible_penalty (null masks subsets over the storage)",
    "output": "output_dir",
    "work_dir": "output_dir (jobs go to its folder jobs)",
}

CHOICES = {
    "experiment=t2drl_set": "experiment=t2drl",
    "experiment=t2drl_ddpg_set": "experiment=t2drl_ddpg",
    "allocator=d3pg_set": "allocator=d3pg",
    "allocator=ddpg_set": "allocator=ddpg",
}
