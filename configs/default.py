"""Every field of a configuration, with its meaning and unit.

The fields of training are here; `_after_training.py` has those for sampling and evaluation.

A placeholder takes the default of whatever `name` chooses: with `config.sde.name = "vp"`,
`beta_min` has the default of `sde_lib.VPSDE`. Fields that the choice does not have are not used;
setting one on the command line is an error. The command line can set every field:
`--config.optim.lr=1e-4`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import _after_training


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 42  # for initialization, training noise and data order

    config.sde = sde = ConfigDict()
    sde.name = "vp"  # vp, subvp, cosine, linear, learned, ve, edm; chains ddpm, smld
    sde.beta_min = placeholder(float)  # vp, subvp: beta(0)
    sde.beta_max = placeholder(float)  # vp, subvp: beta(1)
    sde.sigma_min = placeholder(float)  # ve, smld: noise of the data
    sde.sigma_max = placeholder(float)  # ve, smld, edm: noise of the prior
    sde.offset = placeholder(float)  # cosine: keeps the first noise from vanishing
    sde.alpha_min = placeholder(float)  # cosine, linear: signal left at t = 1
    sde.diffusion = placeholder(float)  # linear: of Brownian bridges between coupled ends
    sde.log_snr_max = placeholder(float)  # learned: at t = 0, before training
    sde.log_snr_min = placeholder(float)  # learned: at t = 1, before training
    sde.schedule = placeholder(str)  # ddpm: linear, cosine
    sde.num_timesteps = placeholder(int)  # ddpm, smld: length of the chain

    config.model = model = ConfigDict()
    model.name = "ncsnpp"  # a network of models.NETWORKS; its fields are documented there
    model.features = placeholder(int)
    model.channel_multipliers = placeholder(tuple)
    model.blocks_per_resolution = placeholder(int)
    model.attention_resolutions = placeholder(tuple)
    model.decoder_attention = placeholder(str)
    model.dropout = placeholder(float)
    model.residual_block = placeholder(str)
    model.resample = placeholder(str)
    model.fir_kernel = placeholder(tuple)
    model.progressive_input = placeholder(str)
    model.progressive_output = placeholder(str)
    model.progressive_combine = placeholder(str)
    model.embedding = placeholder(str)
    model.fourier_scale = placeholder(float)
    model.num_classes = placeholder(int)
    model.augment_labels = placeholder(int)  # 9 for a network that sees config.augmentation
    model.input_frequencies = placeholder(tuple)  # ncsnpp: of waves that tell gray levels apart
    model.activation = placeholder(str)
    model.skip_rescale = placeholder(bool)
    model.init_scale = placeholder(float)
    model.num_groups = placeholder(int)  # of GroupNorm; 0 for min(channels // 4, 32)
    model.scale_shift = placeholder(bool)
    model.heads = placeholder(int)
    model.head_width = placeholder(int)
    model.learned_variance = placeholder(bool)
    model.upsampling = placeholder(int)  # adm: factor by which it enlarges a small image beside x
    model.patch_size = placeholder(int)
    model.depth = placeholder(int)
    model.mlp_ratio = placeholder(float)
    model.num_timesteps = placeholder(int)
    model.size = placeholder(int)
    model.implementation = placeholder(str)
    model.compute_dtype = placeholder(str)
    model.remat = placeholder(bool)

    config.denoiser = denoiser = ConfigDict()
    # Meaning of the network's output: eps, eps_learned_variance, score, x0, v, velocity, bridge,
    # scaled_score, score_centered_input, edm, iddpm, consistency, levels; see
    # numerics/parameterizations.py.
    denoiser.parameterization = "eps"
    # Time input of the network: timestep_999, t, log_sigma, log_snr, edm, timestep,
    # rescaled_timestep, reversed_timestep, iddpm.
    denoiser.conditioning = "timestep_999"
    denoiser.num_timesteps = 1000  # length of the chain that a timestep counts
    denoiser.sigma_data = 0.5  # edm, consistency: standard deviation of the data
    denoiser.sigma_min = 0.002  # consistency: noise level sigma / alpha of a sample
    denoiser.energy = False  # use the gradient of the network's output; see models/energy.py

    config.loss = loss = ConfigDict()
    # Estimators of the Fisher divergence: denoising, sliced, exact. Of the bound of a chain: vlb,
    # or hybrid (denoising, and the bound for a learned variance). For the sde learned:
    # learned_schedule. Of an energy (denoiser.energy=True): maximum_likelihood. For few steps:
    # consistency_training, consistency_distillation, progressive_distillation. Of the diffusion
    # Schroedinger bridge: mean_matching.
    loss.name = "denoising"
    loss.reduction = "mean"  # over dimensions: mean, sum, half_sum
    # sliced:
    loss.probes = placeholder(int)  # directions per sample
    loss.directions = placeholder(str)  # rademacher, gaussian
    loss.variance_reduced = placeholder(bool)
    # vlb, hybrid:
    loss.coefficient = placeholder(float)  # hybrid: of the bound in bits/dim
    loss.variance = placeholder(str)  # vlb: learned, small, large
    loss.decoder = placeholder(str)  # chain (as published), tweedie
    # mean_matching: steps of its chains
    loss.num_timesteps = placeholder(int)
    # consistency_distillation, progressive_distillation, mean_matching:
    loss.teacher = placeholder(str)  # RUN or RUN:STEP, the run whose network is the teacher
    # consistency_training, consistency_distillation:
    loss.first_intervals = placeholder(int)  # intervals of the noise at the first step
    loss.last_intervals = placeholder(int)  # doubled until there are this many
    loss.rho = placeholder(float)  # spacing of the noise levels, as sampling.rho
    loss.level_mean = placeholder(float)  # of log(sigma / alpha) in training
    loss.level_std = placeholder(float)
    loss.huber = placeholder(float)  # the pseudo-Huber distance's c, per root of the dimension
    loss.ode_step = placeholder(str)  # consistency_distillation: the teacher's step, heun, euler
    # progressive_distillation: DDIM steps of the student; the teacher takes twice as many
    loss.student_steps = placeholder(int)
    loss.grid = placeholder(str)  # progressive_distillation: as sampling.grid
    # progressive_distillation: as sampling.t_min; maximum_likelihood: whose density is learned
    loss.t_min = placeholder(float)
    # maximum_likelihood:
    loss.chains = placeholder(int)  # persistent Langevin chains of the model
    loss.chain_steps = placeholder(int)  # their steps per batch
    loss.chain_step_size = placeholder(float)  # in units of sigma(t_min)^2
    loss.restart = placeholder(float)  # probability that a chain starts anew
    loss.penalty = placeholder(float)  # weight of squared log-densities

    # Which times are trained: uniform, stratified, timesteps, log_snr, log_normal, logit_normal,
    # loss_aware, loss_aware_bins; see objectives/times.py.
    config.times = times = ConfigDict()
    times.name = "uniform"
    times.t_min = placeholder(float)  # smallest time; more for loss.name=sliced and exact
    times.divide_density = placeholder(bool)  # keep the expectation of uniform times
    times.num_timesteps = placeholder(int)  # timesteps, loss_aware: their number
    times.mean = placeholder(float)  # log_normal: of log(sigma / alpha); logit_normal: of logit(t)
    times.std = placeholder(float)  # log_normal, logit_normal
    times.bins = placeholder(int)  # loss_aware_bins: their number
    times.history = placeholder(int)  # loss_aware, loss_aware_bins: losses kept for each level
    times.uniform = placeholder(float)  # loss_aware, loss_aware_bins: share of uniform times

    # Weight of the squared error of the predicted noise: sigma2 (1), g2 (likelihood), x0, v,
    # truncated_snr, velocity, bridge, edm, min_snr, sigmoid; see objectives/weights.py.
    config.weight = weight = ConfigDict()
    weight.name = "sigma2"
    weight.gamma = placeholder(float)  # min_snr: the largest SNR that counts
    weight.bias = placeholder(float)  # sigmoid: the log-SNR of weight 1/2

    config.optim = optim = ConfigDict()
    # adam, adamw, radam, schedule_free_adamw, lion, muon, sgd, adafactor; their fields are
    # documented in training/optimizers.py
    optim.name = "adam"
    optim.lr = 2e-4  # after warm-up
    optim.schedule = "constant"  # constant, cosine (to 0 at the last step), inverse_sqrt
    optim.warmup = placeholder(int)  # steps; 5000 unless warmup_images is given
    optim.warmup_images = placeholder(float)  # warm-up in images instead of steps
    optim.t_ref = placeholder(float)  # inverse_sqrt: the step from which the rate falls
    optim.grad_clip = 1.0  # global norm; 0 for none
    optim.beta1 = placeholder(float)
    optim.beta2 = placeholder(float)
    optim.eps = placeholder(float)
    optim.weight_decay = placeholder(float)  # times the learning rate
    optim.decay_matrices_only = placeholder(bool)
    optim.weight_lr_power = placeholder(float)  # schedule_free_adamw
    optim.momentum = placeholder(float)  # muon, sgd, adafactor
    optim.nesterov = placeholder(bool)  # muon, sgd
    optim.ns_steps = placeholder(int)  # muon: steps that orthogonalize
    optim.update_rms = placeholder(float)  # muon
    optim.decay_rate = placeholder(float)  # adafactor, as all below
    optim.min_dim_size_to_factor = placeholder(int)
    optim.multiply_by_parameter_scale = placeholder(bool)
    optim.clipping_threshold = placeholder(float)

    config.ema = ema = ConfigDict()
    ema.rate = 0.9999  # per step
    ema.warmup = True  # min(rate, (1 + n) / (10 + n))
    # instead of the rate, as EDM: images after which an old value counts half
    ema.half_life_images = placeholder(float)
    ema.ramp_up = placeholder(float)  # largest half-life, as a fraction of the images seen so far
    ema.more_rates = ()  # further averages, chosen by --ema=rate_0.999
    # Averages of any length after training, by --mode=ema --length=0.08, from snapshots:
    ema.snapshot_every = 0  # steps; 0 for no snapshots
    ema.lengths = (0.05, 0.1)  # of the averages stored: their spread over the time trained

    config.data = data = ConfigDict()
    # digits, a tensorflow-datasets name, hf:NAME, or the path of an .npz, .npy, .zip or
    # .array_record file, or of a folder of images or of parquet files; see docs/data.md. Points and
    # series: points:swiss_roll, series:waves, an .npz or .npy of floats; see docs/points.md
    data.name = "digits"
    data.kind = placeholder(str)  # images, points, series; by default as the name or file says
    # points, series:
    data.samples = placeholder(int)  # number of generated rows, of which a tenth is held out
    data.seed = placeholder(int)  # of generated rows, and of which rows are held out
    data.shape = placeholder(tuple)  # of a point or series; by default that of the data
    # of each coordinate or channel, for the network to see mean 0 and standard deviation 1; by
    # default those of the training rows
    data.mean = placeholder(tuple)
    data.std = placeholder(tuple)
    # images:
    data.dir = ""  # tensorflow-datasets directory; empty for its default, ~/tensorflow_datasets
    data.image_size = 8  # pixels
    data.channels = 1
    data.resize = "none"  # none, pad (with zeros), crop (to the center square, then resize)
    data.centered = True  # scale images to [-1, 1]; otherwise to [0, 1]
    data.random_flip = False
    # 10^9 bytes of images up to which they are held in memory; a larger set is read during
    # training, with the same batches. By default a quarter of the memory; 0 always reads
    data.memory_gb = placeholder(float)
    data.workers = 0  # processes that read a large set; 0 for threads, one per core, at most 16
    # How gray levels become numbers, in training and for bits/dim: none (uniform for bits/dim),
    # uniform, truncated_normal (no noise in training), variational (uniform in training, and for
    # bits/dim by --mode=train_dequantizer)
    data.dequantization = "uniform"

    # Which other end x1 belongs to each image x0, instead of independent noise; docs/bridges.md.
    config.coupling = coupling = ConfigDict()
    coupling.name = "independent"  # minibatch_ot, paired, reference, simulated
    coupling.data = ""  # the data set of x1, as data.name; empty for noise
    # instead: what a measurement leaves of x0, such as super_resolve; its fields as in config.task
    coupling.measurement = ""
    coupling.factor = placeholder(int)
    coupling.blur_std = placeholder(float)
    coupling.mask = placeholder(str)
    coupling.fraction = placeholder(float)
    coupling.acceleration = placeholder(float)
    coupling.measurement_seed = placeholder(int)
    coupling.regularization = placeholder(float)  # minibatch_ot: over the mean squared distance
    coupling.run = placeholder(str)  # simulated: RUN or RUN:STEP that makes the pairs
    coupling.samples = placeholder(int)  # simulated: number of pairs

    # Non-leaky augmentation of training images, whose labels the network sees; see
    # training/augmentation.py. config.model.augment_labels=9 makes the input for them.
    config.augmentation = augmentation = ConfigDict()
    augmentation.probability = 0.0  # of each kind but x_flip, for each image; 0 for none
    augmentation.x_flip = True  # of half of the images
    augmentation.y_flip = True
    augmentation.scale = 0.2  # standard deviation of log2 of the scale
    augmentation.rotation = 1.0  # largest angle over half a turn
    augmentation.anisotropy = 0.2  # standard deviation of log2 of the stretch
    augmentation.translation = 0.125  # standard deviation over the image's size

    # How several devices share the work, beside each taking its images; see training/sharding.py.
    config.parallel = parallel = ConfigDict()
    # What each device holds a part of: none, params (also averages and the optimizer's state)
    parallel.shard = "none"
    parallel.min_size = 65_536  # elements of the smallest array that is divided

    config.training = training = ConfigDict()
    training.batch_size = 128  # images, over all devices
    # batch_size of the published numbers; training with another one says so. 0 for no numbers
    training.published_batch_size = 0
    training.published_hardware = ""  # of these numbers, such as "8 V100"; "" if not published
    training.steps = 1000
    training.accumulate = 1  # parts of a batch whose gradients are added up, to save memory
    training.steps_per_call = 1  # steps that the device runs without waiting for Python
    training.prefetch = 2  # batches made ahead by a thread; 0 for none
    training.label_dropout = 0.1  # probability that a class-conditional network sees no class
    training.log_every = 50  # steps
    training.checkpoint_every = 1000  # steps
    training.keep_checkpoints = 3  # the latest; 0 for all
    training.sample_every = 1000  # steps; 0 for never
    training.sample_count = 64  # images in the grid
    training.init_from = ""  # RUN or RUN:STEP whose parameters a new run starts with

    # What is measured during training; plots are in the run's folder `plots`.
    config.diagnostics = diagnostics = ConfigDict()
    diagnostics.every = 1000  # steps; 0 for never
    # some of loss, noise_levels, bits_per_dim (images), nats_per_dim, frechet, weights;
    # by default all, with the likelihood in the unit of the data
    diagnostics.metrics = placeholder(tuple)
    diagnostics.images = 0  # test images, and as many training images; 0 for 256, or all
    diagnostics.levels = 16  # noise levels, equally long in log-SNR
    diagnostics.samples = 128  # for the Frechet distance
    diagnostics.sampling_steps = 10  # of these samples, by UniPC
    # pixels, thumbnails (8 x 8 pixels), inception, classifier, raw; by default thumbnails or raw
    diagnostics.features = placeholder(str)

    config.logging = logging = ConfigDict()
    logging.wandb = ""  # a project of Weights & Biases; empty for none

    _after_training.add_fields(config)
    return config
