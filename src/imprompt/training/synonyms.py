"""The settings of other trainers → their names here, or why there is none.

The words are those of kohya's sd-scripts (train_network.py, fine_tune.py and their data set files), of
diffusers' examples (train_text_to_image.py, train_dreambooth.py, train_controlnet.py), where they are options
and so may have hyphens, and of IP-Adapter's own tutorial_train.py.
"""

from collections.abc import Mapping

_SAME: Mapping[str, str] = {
    "base.model": "pretrained_model_name_or_path pretrained_model model_name_or_path base_model",
    "base.image_encoder": "image_encoder_path image_encoder_name_or_path",
    "adapter.start": "pretrained_ip_adapter_path network_weights controlnet_model_name_or_path",
    "adapter.tokens": "num_tokens num_image_tokens clip_extra_context_tokens",
    "data.source": (
        "train_data_dir image_dir instance_data_dir dataset_name dataset_dir data_json_file in_json "
        "metadata_file train_data train_shards_path_or_url"
    ),
    "data.root": "data_root_path data_root image_root",
    "data.size": "resolution image_size train_resolution",
    "data.columns.image": "image_column",
    "data.columns.text": "caption_column text_column caption_extension caption_extention caption_ext",
    "data.columns.reference": "conditioning_image_column original_image_column",
    "data.buckets": "enable_bucket bucketing aspect_ratio_buckets",
    "data.bucket_step": "bucket_reso_steps",
    "data.held_out": "validation_split validation_data_dir",
    "cache.enabled": "cache_latents cache_latents_to_disk cache_text_encoder_outputs",
    "cache.folder": "latents_cache_dir",
    "cache.batch_size": "vae_batch_size",
    "loss.image_drop": "i_drop_rate image_drop_rate",
    "loss.text_drop": "t_drop_rate caption_dropout_rate conditioning_dropout_prob proportion_empty_prompts",
    "loss.both_drop": "ti_drop_rate",
    "loss.min_snr_gamma": "snr_gamma",
    "loss.timesteps": "timestep_sampling weighting_scheme timestep_bias_strategy",
    "loss.timestep_location": "logit_mean",
    "training.steps": "max_train_steps max_steps train_steps num_train_steps total_steps",
    "training.batch_size": "train_batch_size per_device_train_batch_size",
    "training.passes": "gradient_accumulation_steps grad_accum_steps accumulate_grad_batches",
    "training.learning_rate": "lr unet_lr ip_lr adapter_lr",
    "training.schedule": "lr_scheduler lr_scheduler_type",
    "training.warmup_steps": "lr_warmup_steps num_warmup_steps",
    "training.cooldown_steps": "lr_decay_steps",
    "training.weight_decay": "adam_weight_decay",
    "training.max_gradient_norm": "max_grad_norm gradient_clip_val grad_clip",
    "training.ema_decay": "use_ema ema",
    "training.precision": "mixed_precision full_fp16 full_bf16",
    "training.save_every": "checkpointing_steps save_every_n_steps save_steps",
    "training.sample_every": "sample_every_n_steps validation_steps",
    "training.keep": "checkpoints_total_limit save_last_n_steps save_total_limit",
    "training.log_every": "logging_steps log_steps",
    "training.loader_workers": "dataloader_num_workers max_data_loader_n_workers num_workers",
    "watch.prompts": "validation_prompt validation_prompts sample_prompts",
    "watch.references": "num_validation_images",
    "watch.wandb": "report_to log_with tracker_project_name wandb_project log_tracker_name",
    "output": "output_dir output_name output_path logging_dir",
}
"""Our key → the words of others for it."""

_NONE: Mapping[str, str] = {
    "a run is counted in training.steps: epochs × samples / training.batch_size": (
        "num_train_epochs max_train_epochs epochs num_epochs"
    ),
    "checkpoints and samples are counted in steps: training.save_every, training.sample_every": (
        "save_every_n_epochs save_n_epoch_ratio save_last_n_epochs sample_every_n_epochs validation_epochs"
    ),
    "an image-prompt adapter is no LoRA; adapter.lora_rank is for faces, distillation.rank for few steps": (
        "network_dim network_alpha network_module network_args network_dropout network_train_unet_only "
        "network_train_text_encoder_only lora_alpha dim_from_weights scale_weight_norms"
    ),
    "captions are taken as they stand; reorder their words in the files": (
        "shuffle_caption keep_tokens keep_tokens_separator caption_separator caption_tag_dropout_rate "
        "caption_dropout_every_n_epochs token_warmup_min token_warmup_step caption_prefix caption_suffix "
        "weighted_captions max_token_length clip_skip"
    ),
    "pictures are not changed at random, as the cache holds each once; put changed copies into the data": (
        "flip_aug random_flip color_aug random_crop face_crop_aug_range"
    ),
    "targets are cut in the middle; data.buckets keeps their proportions": "center_crop bucket_no_upscale",
    "each sample is there once in an epoch; name it several times in a table": (
        "num_repeats dataset_repeats repeats"
    ),
    "the optimizer is AdamW": (
        "optimizer optimizer_type optimizer_args use_8bit_adam use_lion_optimizer adam_beta1 adam_beta2 "
        "adam_epsilon lr_scheduler_num_cycles lr_scheduler_power lr_num_cycles lr_power"
    ),
    "training.learning_rate is taken as it stands, whatever the size of a batch": "scale_lr",
    "how long buckets get is a proportion: data.longest": "max_bucket_reso min_bucket_reso",
    "masks and references lie beside the pictures: see data.columns": "conditioning_data_dir",
    "the text encoder stays as it is": (
        "text_encoder_lr train_text_encoder learning_rate_te learning_rate_te1 learning_rate_te2 "
        "stop_text_encoder_training"
    ),
    "an adapter learns no subject, so that there is no class to preserve": (
        "reg_data_dir prior_loss_weight with_prior_preservation class_data_dir class_prompt instance_prompt "
        "class_tokens is_reg num_class_images"
    ),
    "what the model predicts is read from the base's scheduler": (
        "v_parameterization prediction_type v2 zero_terminal_snr scale_v_pred_loss_like_noise_pred "
        "v_pred_like_loss"
    ),
    "PyTorch's own attention is used, which needs no setting": (
        "xformers sdpa mem_eff_attn enable_xformers_memory_efficient_attention allow_tf32 lowram highvram"
    ),
    "go on from the last checkpoint by `imprompt train CONFIG.toml --resume latest`": (
        "resume resume_from_checkpoint save_state save_state_on_train_end initial_step initial_epoch"
    ),
    "a run's folder is written, and nothing is sent anywhere": (
        "push_to_hub hub_token hub_model_id huggingface_repo_id huggingface_token"
    ),
    "how many processes there are, torchrun or accelerate launch say": (
        "local_rank num_processes multi_gpu deepspeed gpu_ids"
    ),
    "the base's folder or hub id has them all: base.model": (
        "vae pretrained_vae_model_name_or_path no_half_vae revision non_ema_revision "
        "tokenizer_name tokenizer_cache_dir unet_model_name_or_path"
    ),
    "adapters are saved as safetensors in float32; `imprompt convert` changes the layout": (
        "save_precision save_model_as"
    ),
    "the loss is the mean squared error of the base's own prediction": (
        "loss_type huber_c huber_schedule masked_loss debiased_estimation_loss"
    ),
    "noise is drawn over all timesteps; loss.noise_offset is there": (
        "multires_noise_iterations multires_noise_discount adaptive_noise_scale ip_noise_gamma min_timestep "
        "max_timestep noise_offset_random_strength"
    ),
    "leave samples out by a table that does not name them": "max_train_samples",
    "data are settings of the one group [data]": "datasets subsets general dataset_config dataset_class",
    "the groups are [base], [adapter], [data], [cache], [loss], [training] and [watch]": (
        "model_arguments dataset_arguments training_arguments sample_prompt_arguments saving_arguments "
        "optimizer_arguments additional_network_arguments logging_arguments"
    ),
}
"""Why a setting has no counterpart, and what to do instead → the words of others for it."""


def _invert(table: Mapping[str, str]) -> dict[str, str]:
    return {word: meaning for meaning, words in table.items() for word in words.split()}


COUNTERPARTS: Mapping[str, str] = _invert(_SAME)
"""The word of another trainer → our key."""

WITHOUT_COUNTERPART: Mapping[str, str] = _invert(_NONE)
"""The word of another trainer → why there is no such key here."""


def counterpart(key: str) -> str | None:
    """Say what a setting of another trainer is called here.

    Args:
        key: as it is written there, e.g. "max_train_steps" or "max-train-steps"

    Returns:
        a clause that names our key, or says that there is none and why; None for a word that is not known
    """
    word = key.lower().removeprefix("--").replace("-", "_")
    if word in COUNTERPARTS:
        return f"it is {COUNTERPARTS[word]!r} here"
    if word in WITHOUT_COUNTERPART:
        return f"it has no counterpart here: {WITHOUT_COUNTERPART[word]}"
    return None
